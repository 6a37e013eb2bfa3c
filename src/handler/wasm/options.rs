//! Options of a guest: component file, limits, settings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::limits::EventBudget;

/// Default limit of the linear memory of one instance, in bytes.
pub(crate) const MEMORY_BYTES_DEFAULT: usize = 16 << 20;

/// Default limit of the CPU time of one event.
pub(crate) const EVENT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// How the connections of a guest are isolated from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// One instance for each connection.
    Connection,
    /// This many instances, `1..`, serve all connections; a trap loses the state of all connections of one instance.
    Shared(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Handler name in the configuration, in logs and metrics.
    pub name: Arc<str>,
    /// A component, or a core module with component metadata or with the interface's exports.
    pub component: PathBuf,
    pub isolation: Isolation,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes_max: usize,
    /// CPU time of one event.
    pub event_timeout: Duration,
    pub budget: EventBudget,
    /// Results of the guest's `setting` calls.
    pub settings: BTreeMap<String, String>,
}

impl Options {
    /// Default limits.
    pub fn new(name: Arc<str>, component: PathBuf) -> Self {
        Self {
            name,
            component,
            isolation: Isolation::Connection,
            memory_bytes_max: MEMORY_BYTES_DEFAULT,
            event_timeout: EVENT_TIMEOUT_DEFAULT,
            budget: EventBudget::default(),
            settings: BTreeMap::new(),
        }
    }
}
