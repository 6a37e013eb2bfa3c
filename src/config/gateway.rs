//! `[gateway]`: settings of the process as a whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::ExternalFiles;
use super::diagnostics::ErrorReported;
use super::read::{Table, read_all};
use super::schema::section;
use super::value::{PATH, count, duration, secs, size, text};

section! {
    /// The process as a whole.
    "gateway", "[gateway]", Once;

    /// the name of this gateway, in `Message.node`
    NODE "node": String = text("a name such as \"gw-1\"", 1..=255), optional "the host name";
    /// directory of what the gateway keeps, such as compiled components; made when it is absent; writable by the
    /// gateway alone
    DATA_DIR "data_dir": String = PATH, default "polygate-data".to_owned();
    /// how long connections may take to end when the gateway stops
    DRAIN_TIMEOUT "drain_timeout": Duration = duration(secs(0)..=secs(3600)), default secs(30);
    /// connections of all listeners for tcp and tls at a time, each of which takes a descriptor; more peers wait in the
    /// backlog
    CONNECTIONS_MAX "connections_max": usize =
        count(1..=100_000_000), optional "what the limit on descriptors leaves";
    /// bytes in the queues of all connections together. From half of it, a connection with queued bytes is not read; from three
    /// quarters, at most 4 KiB are queued for a socket; when it is used up, messages and datagrams for connections are dropped
    /// and counted
    QUEUED_BYTES_MAX "queued_bytes_max": usize =
        size(1 << 20..=1 << 50), optional "a quarter of the memory of the machine, or of its control group";
}

/// The settings of `[gateway]`.
pub(super) struct Gateway {
    pub(super) node: Arc<str>,
    pub(super) data_dir: PathBuf,
    pub(super) drain_timeout: Duration,
    pub(super) connections_max: Option<usize>,
    pub(super) queued_bytes_max: Option<usize>,
}

pub(super) fn read(root: &Table<'_>, external: ExternalFiles<'_>) -> Result<Gateway, ErrorReported> {
    let table = root.section_or_empty(&SECTION)?;
    read_all!(Gateway {
        node: table.get(&NODE).map(|node| node.unwrap_or_else(host_name).into()),
        data_dir: table.get_with(&DATA_DIR, |path| external.directory(&path)),
        drain_timeout: table.get(&DRAIN_TIMEOUT),
        connections_max: table.get(&CONNECTIONS_MAX),
        queued_bytes_max: table.get(&QUEUED_BYTES_MAX),
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
