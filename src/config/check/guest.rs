//! Handlers of kind `wasm`.

use std::path::PathBuf;

use crate::config::ExternalFiles;
use crate::config::diagnostics::ErrorReported;
use crate::config::read::Table;
use crate::config::schema::handler::wasm;
use crate::config::value::Located;
use crate::handler::wasm::{Bounds, EventBudget, Options};

/// What a version goes through before it is one.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) compile: Bounds,
    pub(super) conversations: Vec<PathBuf>,
}

pub(super) fn checks(table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Checks, ErrorReported> {
    let timeout = table.get(&wasm::COMPILE_TIMEOUT);
    let memory_bytes_max = table.get(&wasm::COMPILE_MEMORY_MAX);
    let conversations = table.get(&wasm::CONVERSATIONS).and_then(|written| {
        let found = written.into_iter().flatten().map(|Located { value, location }| {
            external.check_there(&value).map_err(|fault| table.fault_in(location, fault))?;
            Ok(external.path(&value))
        });
        // All are looked at before the first fault ends it.
        found.collect::<Vec<Result<_, ErrorReported>>>().into_iter().collect()
    });
    Ok(Checks {
        compile: Bounds { timeout: timeout?, memory_bytes_max: memory_bytes_max? as u64 },
        conversations: conversations?,
    })
}

pub(super) fn read(name: &str, table: &Table<'_>, external: ExternalFiles<'_>) -> Result<Options, ErrorReported> {
    let component = table.get(&wasm::COMPONENT).and_then(|written| {
        external.check_wasm(&written).map_err(|fault| table.fault_at("component", fault))?;
        Ok(external.path(&written))
    });
    let isolation = table.get(&wasm::ISOLATION);
    let memory_bytes_max = table.get(&wasm::MEMORY_MAX);
    let event_timeout = table.get(&wasm::EVENT_TIMEOUT);
    let settings = table.get(&wasm::SETTINGS);
    let publishes_max = table.get(&wasm::EVENT_PUBLISHES_MAX);
    let sent_bytes_max = table.get(&wasm::EVENT_SENT_MAX);
    let log_lines_max = table.get(&wasm::EVENT_LOG_LINES_MAX);
    Ok(Options {
        name: name.into(),
        component: component?,
        isolation: isolation?,
        memory_bytes_max: memory_bytes_max?,
        event_timeout: event_timeout?,
        budget: EventBudget {
            publishes_max: publishes_max?,
            sent_bytes_max: sent_bytes_max?,
            log_lines_max: log_lines_max?,
        },
        settings: settings?,
    })
}
