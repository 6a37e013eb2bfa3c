//! `[handlers.NAME]`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::guest::Checks;
use super::{grpc, guest};
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::{Item, Named, Table};
use crate::config::schema::handler::{self, Kind};
use crate::config::warning::Advice;
use crate::config::{ExternalFiles, Handler, Listener, Program};
use crate::dispatch::Policy;
use crate::rollout::Rollback;

/// All handlers, in the order of the file.
#[derive(Debug)]
pub(super) struct Handlers<'t>(Vec<One<'t>>);

#[derive(Debug)]
struct One<'t> {
    name: &'t str,
    item: Item<'t>,
    kind: Result<Kind, ErrorReported>,
    options: Result<Handler, ErrorReported>,
}

pub(super) fn read<'t>(root: &Table<'t>, external: ExternalFiles<'_>) -> Result<Handlers<'t>, ErrorReported> {
    let Some(item) = root.item(handler::SECTION.key) else {
        return Ok(Handlers(Vec::new()));
    };
    Ok(Handlers(item.table()?.items().into_iter().map(|named| one(named, external)).collect()))
}

fn one<'t>(named: Named<'t>, external: ExternalFiles<'_>) -> One<'t> {
    let Named { key: name, item } = named;
    let checked = check_name(name, &item);
    let (kind, options) = match item.table() {
        Err(told) => (Err(told), Err(told)),
        Ok(table) => {
            let kind = table.get(&handler::KIND);
            let (wasm, grpc) = (&handler::wasm::SECTION, &handler::grpc::SECTION);
            let options = match kind {
                Ok(Kind::Wasm) => {
                    table.admit(&[wasm], &[grpc]);
                    with_policy(
                        &table,
                        guest::read(name, &table, external).map(Program::Wasm),
                        guest::checks(&table, external),
                    )
                }
                Ok(Kind::Grpc) => {
                    table.admit(&[grpc], &[wasm]);
                    with_policy(&table, grpc::read(name, &table, external).map(Program::Grpc), Ok(Checks::default()))
                }
                Err(told) => {
                    table.admit(&[&handler::SECTION, wasm, grpc], &[]);
                    Err(told)
                }
            };
            (kind, options)
        }
    };
    One { name, item, kind, options: checked.and(options) }
}

/// What both kinds have.
fn with_policy(
    table: &Table<'_>,
    program: Result<Program, ErrorReported>,
    checks: Result<Checks, ErrorReported>,
) -> Result<Handler, ErrorReported> {
    let on_failure = table.get(&handler::ON_FAILURE);
    let hold_timeout = table.get(&handler::HOLD_TIMEOUT);
    let swap = table.get(&handler::SWAP);
    let threshold = table.get(&handler::ROLLBACK_THRESHOLD);
    let window = table.get(&handler::ROLLBACK_WINDOW);
    let Checks { compile, conversations } = checks?;
    Ok(Handler {
        program: program?,
        policy: Policy { on_failure: on_failure?, hold_timeout: hold_timeout? },
        swap: swap?,
        rollback: Rollback { threshold: threshold?, window: window? },
        compile,
        conversations,
    })
}

/// Names stand in logs, metrics and urls as they are.
pub(super) fn check_name(name: &str, item: &Item<'_>) -> Result<(), ErrorReported> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(item.fault(Fault::Name { found: name.to_owned() }))
    }
}

impl Handlers<'_> {
    /// Whether a handler calls the adapter's service.
    pub(super) fn need_adapter(&self) -> bool {
        self.0.iter().any(|one| matches!(one.kind, Ok(Kind::Grpc)))
    }

    /// The names, also of those that have faults of their own.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|one| one.name)
    }

    pub(super) fn warn_of_unused(&self, listeners: &[Listener]) {
        let used: BTreeSet<&Arc<str>> = listeners.iter().flat_map(|listener| &listener.handlers).collect();
        for one in self.0.iter().filter(|one| !used.iter().any(|name| ***name == *one.name)) {
            one.item.warn(Advice::HandlerUnused);
        }
    }

    pub(super) fn into_options(self) -> Result<Vec<Handler>, ErrorReported> {
        self.0.into_iter().map(|one| one.options).collect()
    }
}
