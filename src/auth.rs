//! Authentication of clients, and authorization of publish and subscribe.
//!
//! One policy for devices and for MQTT clients of the embedded broker; [`Auth::replace`] replaces it while clients stay
//! connected, and their next requests meet the new rules. Holds password hashes; never shows or logs them, nor a
//! password.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use crate::conn::{Denied, Password};

mod hash;
mod pattern;
mod rule;

pub(crate) use hash::HashFault;
use hash::PasswordHash;
pub(crate) use rule::RuleFault;
pub use rule::{Action, Effect, Rule};
use rule::{CheckedRule, Client};

/// Maximum number of concurrent password verifications.
///
/// Each takes the memory that its hash asks for, at most [`HASH_MEMORY_KIB_MAX`], and a core.
const VERIFICATIONS_MAX: usize = 4;

/// Maximum memory of a password hash, in KiB.
pub(crate) const HASH_MEMORY_KIB_MAX: u32 = 256 * 1024;

/// Policy as configured.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether clients without a user name are allowed; without any users, whether clients are allowed at all.
    pub allow_anonymous: bool,
    pub users: Vec<User>,
    /// In order: the first matching rule decides; without a match the request is allowed.
    pub rules: Vec<Rule>,
}

#[derive(Clone)]
pub struct User {
    /// Not empty.
    pub username: String,
    /// An argon2id hash in PHC form: `$argon2id$v=19$m=19456,t=2,p=1$…$…`.
    pub password_hash: SecretString,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Invalid [`Options`].
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("users[{user}] has no username")]
    UsernameEmpty {
        /// Index in the list, from 0.
        user: usize,
    },
    #[error("users[{user}]: there is a user {username:?} already")]
    UsernameTwice {
        /// Index of the second one, from 0.
        user: usize,
        username: String,
    },
    /// An invalid password hash.
    #[error("users[{user}].password_hash of {username:?}")]
    Hash {
        /// Index of the user, from 0.
        user: usize,
        username: String,
        /// The fault; never shows the hash.
        #[source]
        fault: HashFault,
    },
    /// An invalid rule.
    #[error("rules[{rule}]")]
    Rule {
        /// Index in the list, from 0.
        rule: usize,
        #[source]
        fault: RuleFault,
    },
}

/// Credentials of a client.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    pub client_id: &'a str,
    /// Empty if there is none.
    pub username: &'a str,
    /// Any bytes, as in MQTT.
    pub password: Option<&'a Password>,
}

/// Active policy. Clones share it.
#[derive(Clone)]
pub struct Auth(Arc<Shared>);

struct Shared {
    policy: ArcSwap<Policy>,
    verifications: Semaphore,
}

struct Policy {
    allow_anonymous: bool,
    users: Users,
    rules: Vec<CheckedRule>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.0.policy.load();
        f.debug_struct("Auth")
            .field("allow_anonymous", &policy.allow_anonymous)
            .field("users", &policy.users.0.len())
            .field("rules", &policy.rules.len())
            .finish()
    }
}

impl Auth {
    /// Checks the options and creates the policy.
    ///
    /// # Errors
    ///
    /// The first fault; see [`OptionsError`].
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        let policy = ArcSwap::from_pointee(Policy::new(options)?);
        Ok(Self(Arc::new(Shared { policy, verifications: Semaphore::new(VERIFICATIONS_MAX) })))
    }

    /// Checks the options and replaces the policy.
    ///
    /// Connected clients stay connected; their next publish or subscribe meets the new rules.
    ///
    /// # Errors
    ///
    /// The first fault; then the old policy stays active.
    pub fn replace(&self, options: Options) -> Result<(), OptionsError> {
        self.0.policy.store(Arc::new(Policy::new(options)?));
        Ok(())
    }

    /// Authenticates a client.
    ///
    /// Without a user name it needs `allow_anonymous`. With one it must be a configured user with its password; without
    /// configured users, names mean nothing and `allow_anonymous` decides. An unknown name takes as long as a wrong
    /// password, so the delay does not reveal which it was.
    ///
    /// Waits while [`VERIFICATIONS_MAX`] others run: hashes are made to be slow and large.
    ///
    /// # Errors
    ///
    /// [`Denied::Anonymous`] or [`Denied::Credentials`].
    pub async fn authenticate(&self, credentials: Credentials<'_>) -> Result<(), Denied> {
        let policy = self.0.policy.load_full();
        if credentials.username.is_empty() || policy.users.0.is_empty() {
            return if policy.allow_anonymous { Ok(()) } else { Err(Denied::Anonymous) };
        }
        let (hash, known) = policy.users.find(credentials.username).ok_or(Denied::Credentials)?;
        let password = credentials.password.cloned().unwrap_or_else(|| Password::new([]));
        let verified = {
            let _permit = self.0.verifications.acquire().await.map_err(|_| Denied::Credentials)?;
            tokio::task::spawn_blocking(move || hash.verify(password.expose())).await
        };
        match verified {
            Ok(verified) if verified && known => Ok(()),
            Ok(_) => Err(Denied::Credentials),
            Err(error) => {
                tracing::error!(%error, client_id = credentials.client_id, "cannot verify a password");
                Err(Denied::Credentials)
            }
        }
    }

    /// Whether a client may publish to a topic name of the broker, that is, with the mountpoint.
    ///
    /// `username` is empty if it has none.
    pub fn allows_publish(&self, client_id: &str, username: &str, topic: &str) -> bool {
        self.0.policy.load().allows(&Client { client_id, username }, Action::Publish, topic)
    }

    /// Whether a client may subscribe to a topic filter of the broker, that is, with the mountpoint. Of a shared
    /// subscription (`$share/group/filter`) the filter is checked: a rule is about messages, and a member of a group
    /// may get any message of its filter.
    ///
    /// A deny rule matches if its filter and the requested one have a name in common; an allow rule matches if its
    /// filter covers the requested one. Otherwise a client could request more than is denied (`#` where `secret/#` is
    /// denied), or more than is allowed, and get the forbidden part with it.
    ///
    /// `username` is empty if it has none. A malformed filter is not allowed.
    pub fn allows_subscribe(&self, client_id: &str, username: &str, filter: &str) -> bool {
        let Ok(parsed) = crate::topic::parse_filter(filter) else { return false };
        self.0.policy.load().allows(&Client { client_id, username }, Action::Subscribe, parsed.filter)
    }
}

impl Policy {
    fn new(options: Options) -> Result<Self, OptionsError> {
        let rules = options
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| CheckedRule::new(rule).map_err(|fault| OptionsError::Rule { rule: index, fault }));
        Ok(Self {
            allow_anonymous: options.allow_anonymous,
            rules: rules.collect::<Result<_, _>>()?,
            users: Users::new(options.users)?,
        })
    }

    fn allows(&self, client: &Client<'_>, action: Action, topic: &str) -> bool {
        let decisive = self.rules.iter().find(|rule| rule.matches(client, action, topic));
        decisive.is_none_or(|rule| rule.effect() == Effect::Allow)
    }
}

/// Users, sorted by name.
struct Users(Vec<(String, Arc<PasswordHash>)>);

impl Users {
    fn new(users: Vec<User>) -> Result<Self, OptionsError> {
        let mut checked: Vec<(String, Arc<PasswordHash>)> = Vec::with_capacity(users.len());
        for (index, user) in users.into_iter().enumerate() {
            let username = user.username;
            if username.is_empty() {
                return Err(OptionsError::UsernameEmpty { user: index });
            }
            match PasswordHash::parse(user.password_hash.expose_secret()) {
                Err(fault) => return Err(OptionsError::Hash { user: index, username, fault }),
                Ok(hash) => match checked.binary_search_by(|(known, _)| known.cmp(&username)) {
                    Ok(_) => return Err(OptionsError::UsernameTwice { user: index, username }),
                    Err(place) => checked.insert(place, (username, Arc::new(hash))),
                },
            }
        }
        Ok(Self(checked))
    }

    /// The hash to verify a password against, and whether `username` is known.
    ///
    /// For an unknown name it is another user's hash, always the same one for the same name: its verification costs
    /// what a user's does, also when hashes differ in cost. `None` without users.
    fn find(&self, username: &str) -> Option<(Arc<PasswordHash>, bool)> {
        match self.0.binary_search_by(|(known, _)| known.as_str().cmp(username)) {
            Ok(place) => Some((self.0[place].1.clone(), true)),
            Err(place) => Some((self.0.get(place).or(self.0.last())?.1.clone(), false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hash of "secret", with minimal cost.
    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$3+oP1qKlyJ4YtBGvnjCIBA0OdNqSpNyvOpZGE0rShXQ";

    fn options(allow_anonymous: bool, users: &[&str], rules: Vec<Rule>) -> Options {
        let users = users
            .iter()
            .map(|name| User { username: (*name).to_owned(), password_hash: hash::tests::hash("secret").into() })
            .collect();
        Options { allow_anonymous, users, rules }
    }

    fn rule(effect: Effect, action: Action, clients: &[&str], topics: &[&str]) -> Rule {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Rule { effect, action, clients: owned(clients), usernames: None, topics: owned(topics) }
    }

    async fn authenticate(auth: &Auth, username: &str, password: Option<&str>) -> Result<(), Denied> {
        let password = password.map(|password| Password::new(password.as_bytes()));
        auth.authenticate(Credentials { client_id: "c", username, password: password.as_ref() }).await
    }

    #[tokio::test]
    async fn users_need_their_password_and_anonymous_clients_permission() {
        let auth = Auth::new(options(false, &["u", "v"], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "u", Some("secret")).await, Ok(()));
        assert_eq!(authenticate(&auth, "u", Some("Secret")).await, Err(Denied::Credentials));
        assert_eq!(authenticate(&auth, "u", None).await, Err(Denied::Credentials));
        for unknown in ["a", "uu", "z"] {
            assert_eq!(authenticate(&auth, unknown, Some("secret")).await, Err(Denied::Credentials));
        }
        assert_eq!(authenticate(&auth, "", None).await, Err(Denied::Anonymous));

        auth.replace(options(true, &["u"], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "", None).await, Ok(()));
        assert_eq!(authenticate(&auth, "w", Some("secret")).await, Err(Denied::Credentials));
    }

    #[tokio::test]
    async fn without_users_names_are_ignored() {
        let auth = Auth::new(options(true, &[], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "any", Some("x")).await, Ok(()));
        auth.replace(options(false, &[], vec![])).unwrap();
        assert_eq!(authenticate(&auth, "any", Some("x")).await, Err(Denied::Anonymous));
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let auth = Auth::new(options(
            true,
            &[],
            vec![
                rule(Effect::Allow, Action::Publish, &["admin-*"], &["$SYS/#"]),
                rule(Effect::Deny, Action::Publish, &["*"], &["$SYS/#"]),
                rule(Effect::Allow, Action::Subscribe, &["*"], &["d/${clientid}/#"]),
                rule(Effect::Deny, Action::Subscribe, &["*"], &["d/#"]),
            ],
        ))
        .unwrap();
        assert!(auth.allows_publish("admin-1", "", "$SYS/x"));
        assert!(!auth.allows_publish("admi", "", "$SYS/x"));
        assert!(auth.allows_publish("a", "", "d/b/x"));
        assert!(auth.allows_subscribe("a", "", "d/a/#"));
        assert!(auth.allows_subscribe("a", "", "$share/g/d/a/x"));
        assert!(auth.allows_subscribe("a", "", "$SYS/#"));
        for filter in ["d/b/x", "d/+/x", "#", "+/a/x", "$share/g/d/b/x", "$share/g", ""] {
            assert!(!auth.allows_subscribe("a", "", filter), "{filter}");
        }
    }

    #[test]
    fn a_fault_names_its_index_and_never_the_hash() {
        let mut bad = options(true, &["u", "v"], vec![]);
        bad.users[1].password_hash = HASH.replace("argon2id", "argon2i").into();
        let error = Auth::new(bad).unwrap_err();
        let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert_eq!(chain, r#"users[1].password_hash of "v": argon2id is expected, and it is argon2i"#);

        let error = Auth::new(options(true, &["u", "u"], vec![])).unwrap_err();
        assert_eq!(error.to_string(), r#"users[1]: there is a user "u" already"#);
        assert!(Auth::new(options(true, &[""], vec![])).is_err());
        assert!(!format!("{:?}", options(true, &["u"], vec![])).contains("argon2id$"));
        assert_eq!(format!("{:?}", Password::new(*b"secret")), "Password(…)");
    }
}
