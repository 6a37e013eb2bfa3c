//! Counters of logins.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Results of logins with a user name.
#[derive(Clone, Debug, Default)]
pub struct LoginMetrics {
    pub verified: Counter,
    pub cached: Counter,
    pub wrong: Counter,
    pub overloaded: Counter,
}

impl LoginMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("logins_verified", "Logins with the right password, which was verified", &self.verified),
            ("logins_cached", "Logins with a password that was verified minutes before", &self.cached),
            ("logins_wrong", "Logins with an unknown user name or a wrong password", &self.wrong),
            (
                "logins_overloaded",
                "Logins refused unverified, because too many passwords were to be verified",
                &self.overloaded,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}
