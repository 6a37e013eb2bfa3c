//! `[handlers.NAME]`: handlers of both kinds, and the keys that both have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::diagnostics::{Advice, ErrorReported};
use super::location::Quoted;
use super::read::{Item, Table, all, read_all};
use super::schema::section;
use super::value::{Choice, OrTable, PERCENTAGE, ValueType, duration, millis, quoted, secs};
use super::{ExternalFiles, Handler, Listener, Program};
use crate::dispatch::{OnFailure, Policy};
use crate::percent::Percent;
use crate::rollout::{Rollback, Swap as SwapMode};

pub(super) mod grpc;
pub(super) mod wasm;

/// The kinds of handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Wasm,
    Grpc,
}

section! {
    "handlers", "[handlers.NAME]", Named;

    /// the kind of handler
    KIND "kind": Kind = Choice(&[("wasm", Kind::Wasm), ("grpc", Kind::Grpc)]), required;
    /// `fallback`: hold and retry, a fresh instance, then the next handler of the listener; `close`: end the connection
    /// at the first failure, as EMQX does
    ON_FAILURE "on_failure": OnFailure =
        Choice(&[("fallback", OnFailure::Fallback), ("close", OnFailure::Close)]), default OnFailure::Fallback;
    /// how long an event is held and retried while the handler is unavailable
    HOLD_TIMEOUT "hold_timeout": Duration = duration(millis(1)..=secs(3600)), default secs(30);
    /// how a new version takes over: `"live"`: connections move to it between two events; `"new-connections"`: it
    /// serves new connections; `{ canary = "5%" }`: it is tested on a part of the new connections; `"shadow"`: it is
    /// tested on the same events without effect
    SWAP "swap": SwapMode = SWAP_MODE, default SwapMode::Live;
    /// the failure rate of a new version, in percent of its events, above which it is rolled back automatically; at
    /// least five failures are needed; 100% for never
    ROLLBACK_THRESHOLD "rollback_threshold": Percent = PERCENTAGE, default Percent::new(500);
    /// how long the failure rate of a new version is watched; that of a canary or shadow until it is promoted or
    /// abandoned
    ROLLBACK_WINDOW "rollback_window": Duration = duration(millis(100)..=secs(24 * 3600)), default secs(60);
}

section! {
    mod swap;
    /// Instead of a word, the `swap` of a handler may be a table with this key: a new version is tested on a part of
    /// the new connections until it is promoted or abandoned; see [hot swap](hot-swap.md).
    "", "Canaries", Once;

    /// the share of new connections
    CANARY "canary": Percent = PERCENTAGE, required;
}

const SWAP_MODE: OrTable<SwapMode> = OrTable {
    name: "`\"live\"`, `\"new-connections\"`, `\"shadow\"` or `{ canary = SHARE }`",
    expected: "\"live\", \"new-connections\", \"shadow\" or { canary = \"5%\" }",
    range: || format!("SHARE in {}", PERCENTAGE.form().range),
    scalar: |item| item.value().as_str().map(|_| SWAP_WORD.read(item)),
    section: &swap::SECTION,
    table: |table| Ok(SwapMode::Canary(table.get(&swap::CANARY)?)),
    show: |swap| match swap {
        SwapMode::Canary(percent) => format!("{{ canary = \"{percent}\" }}"),
        SwapMode::Live | SwapMode::NewConnections | SwapMode::Shadow => quoted(swap),
    },
};
const SWAP_WORD: Choice<SwapMode> =
    Choice(&[("live", SwapMode::Live), ("new-connections", SwapMode::NewConnections), ("shadow", SwapMode::Shadow)]);

/// All handlers, in the order of the file.
pub(super) struct Handlers<'t>(Vec<One<'t>>);

struct One<'t> {
    name: &'t str,
    item: Item<'t>,
    kind: Result<Kind, ErrorReported>,
    options: Result<Handler, ErrorReported>,
}

pub(super) fn read<'t>(root: &Table<'t>, external: ExternalFiles<'_>) -> Result<Handlers<'t>, ErrorReported> {
    let Some(item) = root.item(SECTION.key) else { return Ok(Handlers(Vec::new())) };
    let one = |(name, item): (&'t str, Item<'t>)| {
        let checked = check_name(name, &item);
        let table = item.table();
        let kind = table.as_ref().map_err(|reported| *reported).and_then(|table| table.get(&KIND));
        let options = table.and_then(|table| read_one(name, &table, kind, external));
        One { name, item, kind, options: checked.and(options) }
    };
    Ok(Handlers(item.table()?.items().into_iter().map(one).collect()))
}

fn read_one(
    name: &str,
    table: &Table<'_>,
    kind: Result<Kind, ErrorReported>,
    external: ExternalFiles<'_>,
) -> Result<Handler, ErrorReported> {
    let (wasm, grpc) = (&wasm::SECTION, &grpc::SECTION);
    let admitted = match kind {
        Ok(Kind::Wasm) => table.admit(wasm.title, &[wasm], &[grpc]),
        Ok(Kind::Grpc) => table.admit(grpc.title, &[grpc], &[wasm]),
        Err(_) => table.admit(SECTION.title, &[wasm, grpc], &[]),
    };
    let kind = kind?;
    let program = match kind {
        Kind::Wasm => wasm::read(name, table, external).map(Program::Wasm),
        Kind::Grpc => grpc::read(name, table, external).map(Program::Grpc),
    };
    let (compile, conversations) = match kind {
        Kind::Wasm => (wasm::compile_bounds(table), wasm::conversations(table, external)),
        Kind::Grpc => (Ok(crate::handler::wasm::Bounds::default()), Ok(Vec::new())),
    };
    let handler = read_all!(Handler {
        program: program,
        policy: read_all!(Policy { on_failure: table.get(&ON_FAILURE), hold_timeout: table.get(&HOLD_TIMEOUT) }),
        swap: table.get(&SWAP),
        rollback: read_all!(Rollback {
            threshold: table.get(&ROLLBACK_THRESHOLD),
            window: table.get(&ROLLBACK_WINDOW),
        }),
        compile: compile,
        conversations: conversations,
    });
    admitted.and(handler)
}

/// Checks the name of a handler or a listener. Logs, metrics and urls use it unescaped.
pub(super) fn check_name(name: &str, item: &Item<'_>) -> Result<(), ErrorReported> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let expected = "expected 1 to 64 of the characters a-z, A-Z, 0-9, \"_\" and \"-\"";
    Err(item.fault(format_args!("{} is not a name; {expected}", Quoted(name))))
}

impl Handlers<'_> {
    /// Whether a handler calls the adapter's service.
    pub(super) fn need_adapter(&self) -> bool {
        self.0.iter().any(|one| matches!(one.kind, Ok(Kind::Grpc)))
    }

    /// The names, also of handlers with faults.
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
        all(self.0.into_iter().map(|one| one.options))
    }
}
