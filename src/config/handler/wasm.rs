//! `[handlers.NAME]` of kind `wasm`: a guest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{HOLD_TIMEOUT, KIND, ON_FAILURE, ROLLBACK_THRESHOLD, ROLLBACK_WINDOW, SWAP};
use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::read::{Table, all, read_all};
use crate::config::schema::section;
use crate::config::value::{
    Choice, Located, OrTable, PATH, Parsed, Paths, Strings, ValueType, count, duration, millis, secs, size,
};
use crate::handler::wasm::{Bounds, EVENT_TIMEOUT_DEFAULT, EventBudget, Isolation, MEMORY_BYTES_DEFAULT, Options};

section! {
    /// A guest: a WebAssembly component that runs in the gateway.
    "handlers", "[handlers.NAME] of kind \"wasm\"", Named;

    &KIND;
    /// a component, or a core module with component metadata or with exports named after `wit/handler.wit`
    COMPONENT "component": String = PATH, required;
    /// `"connection"`: every connection has an instance of its own; `{ shared = N }`: N instances serve all of them
    ISOLATION "isolation": Isolation = ISOLATION_MODE, default Isolation::Connection;
    /// linear memory of one instance
    // From one page to all that 32-bit WebAssembly can address.
    MEMORY_MAX "memory_max": usize = size(65_536..=1 << 32), default MEMORY_BYTES_DEFAULT;
    /// CPU time of one event
    // A guest's time is counted in steps of 10 ms.
    EVENT_TIMEOUT "event_timeout": Duration = duration(millis(10)..=secs(60)), default EVENT_TIMEOUT_DEFAULT;
    /// messages that one event may publish; more are rejected as overloaded
    EVENT_PUBLISHES_MAX "event_publishes_max": u32 = count(1..=1_000_000), default EventBudget::default().publishes_max;
    /// bytes that one event may send to its device; more are rejected as overloaded
    EVENT_SENT_MAX "event_sent_max": usize = size(1024..=1 << 30), default EventBudget::default().sent_bytes_max;
    /// lines that one event may log; more are dropped and counted
    EVENT_LOG_LINES_MAX "event_log_lines_max": u32 = count(1..=10_000), default EventBudget::default().log_lines_max;
    /// settings that the guest reads with `setting`; not for secrets
    SETTINGS "settings": BTreeMap<String, String> = Strings, default BTreeMap::new();
    &ON_FAILURE;
    &HOLD_TIMEOUT;
    &SWAP;
    &ROLLBACK_THRESHOLD;
    &ROLLBACK_WINDOW;
    /// how long a version of the guest may take to compile
    COMPILE_TIMEOUT "compile_timeout": Duration = duration(secs(1)..=secs(3600)), default Bounds::default().timeout;
    /// memory of the process that compiles a version
    COMPILE_MEMORY_MAX "compile_memory_max": usize =
        size(64 << 20..=1 << 40), default Bounds::default().memory_bytes_max as usize;
    /// recorded conversations, files or folders, that a new version must pass, however the bytes of the device are cut,
    /// before it becomes active
    CONVERSATIONS "conversations": Vec<Located<String>> = Paths, optional "none";
}

section! {
    mod isolation;
    /// Instead of `"connection"`, the isolation of a guest may be a table with this key. Each connection stays with one
    /// instance. An instance handles one event at a time, so an event that waits for `authenticate` delays the other
    /// connections of its instance. After a trap the connections of that instance lose their state; a fresh instance
    /// gets `on-socket-created` for each, before its next event.
    "", "Isolation of guests", Once;

    /// the number of instances for all connections of the handler
    SHARED "shared": usize = INSTANCES, required;
}

const INSTANCES: Parsed<usize> = count(1..=1024);

const ISOLATION_MODE: OrTable<Isolation> = OrTable {
    name: "`\"connection\"` or `{ shared = N }`",
    expected: "\"connection\" or { shared = 4 }",
    range: || format!("N in {}", INSTANCES.form().range),
    scalar: |item| item.value().as_str().map(|_| ISOLATION_WORD.read(item)),
    section: &isolation::SECTION,
    table: |table| Ok(Isolation::Shared(table.get(&isolation::SHARED)?)),
    show: |isolation| match isolation {
        Isolation::Connection => "\"connection\"".to_owned(),
        Isolation::Shared(count) => format!("{{ shared = {count} }}"),
    },
};
const ISOLATION_WORD: Choice<Isolation> = Choice(&[("connection", Isolation::Connection)]);

pub(super) fn read(name: &str, table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Options, ErrorReported> {
    read_all!(Options {
        name: Ok(name.into()),
        component: table.get_with(&COMPONENT, |path| external.wasm(&path)),
        isolation: table.get(&ISOLATION),
        memory_bytes_max: table.get(&MEMORY_MAX),
        event_timeout: table.get(&EVENT_TIMEOUT),
        budget: read_all!(EventBudget {
            publishes_max: table.get(&EVENT_PUBLISHES_MAX),
            sent_bytes_max: table.get(&EVENT_SENT_MAX),
            log_lines_max: table.get(&EVENT_LOG_LINES_MAX),
        }),
        settings: table.get(&SETTINGS),
    })
}

pub(super) fn compile_bounds(table: &Table<'_>) -> Result<Bounds, ErrorReported> {
    read_all!(Bounds {
        timeout: table.get(&COMPILE_TIMEOUT),
        memory_bytes_max: table.get(&COMPILE_MEMORY_MAX).map(|bytes| bytes as u64),
    })
}

pub(super) fn conversations(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Vec<PathBuf>, ErrorReported> {
    all(table.get(&CONVERSATIONS)?.into_iter().flatten().map(|Located { value, location }| {
        external.file_or_directory(&value).map_err(|fault| table.fault_in(location, fault))
    }))
}
