//! Handlers of kind `wasm`.

use crate::config::Outside;
use crate::config::file::handler::wasm;
use crate::config::findings::Told;
use crate::config::read::Table;
use crate::handler::wasm::Options;

pub(super) fn read(name: &str, table: &Table<'_>, outside: Outside<'_>) -> Result<Options, Told> {
    let component = table.get(&wasm::COMPONENT).and_then(|written| {
        outside.check_wasm(&written).map_err(|fault| table.fault_at("component", fault))?;
        Ok(outside.path(&written))
    });
    let isolation = table.get(&wasm::ISOLATION);
    let memory_bytes_max = table.get(&wasm::MEMORY_MAX);
    let event_timeout = table.get(&wasm::EVENT_TIMEOUT);
    let settings = table.get(&wasm::SETTINGS);
    Ok(Options {
        name: name.into(),
        component: component?,
        isolation: isolation?,
        memory_bytes_max: memory_bytes_max?,
        event_timeout: event_timeout?,
        settings: settings?,
    })
}
