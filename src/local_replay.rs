//! Local replay: plays conversations against a guest in process (a dry run), without gateway, socket or broker.
//!
//! The guest runs with its limits as in the gateway; its commands are answered in strict mode, as by a connection
//! without rules, and have no effect. Time is virtual: a `timer` line expires the timer at once. The guest's clock and
//! random numbers are real, so values that depend on them are `??` or `"*"` in the conversation.
//!
//! A stream has no frames, so a handler must behave the same for any fragmentation of its bytes. [`replay`] plays a
//! conversation as recorded, and then with other cuts ([`Fragmentation`]); each play must match the conversation. A
//! device may also disconnect after any byte: there the guest must only not fail.

use std::fmt;
use std::time::{Duration, Instant};

use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use crate::conn::ConnId;
use crate::conversation::bless::Happened;
use crate::conversation::run::Mismatch;
use crate::conversation::{Action, Conversation};
use crate::handler::wasm::Handler;

mod device;
mod fragmentation;
mod player;

pub(crate) use fragmentation::Fragmentation;

use player::Player;

/// Default number of cut positions of each frame, and of bytes before a disconnect: as many as nearly all frames have,
/// and about a second for a guest that takes 100 microseconds to start.
pub(crate) const PLACES_MAX: usize = 4096;

/// Maximum number of events of all plays of one conversation: about a minute of a guest's work. A conversation of very
/// many events is played with fewer cuts.
const EVENTS_MAX: usize = 1_000_000;

/// Minimum number of cuts of each kind, for any number of events.
const PLACES_MIN: usize = 16;

/// Options of a replay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Number of cut positions of each frame, and of disconnects; 0 plays it as recorded only.
    pub places_max: usize,
    /// No further plays start after this instant; skipped ones are counted. The play as recorded always runs.
    pub until: Option<Instant>,
}

impl Default for Options {
    fn default() -> Self {
        Self { places_max: PLACES_MAX, until: None }
    }
}

/// Result of one conversation.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The first failure of each kind of cuts; empty on success.
    pub failures: Vec<Failure>,
    /// Number of plays.
    pub plays: PlayCounts,
    /// Cost of each event in the play as recorded.
    pub cost: Cost,
}

impl Report {
    /// Whether all plays matched.
    pub(crate) fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Number of plays of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlayCounts {
    pub played: usize,
    /// Those with other cuts than recorded.
    pub cut: usize,
    /// Those with a disconnect.
    pub vanished: usize,
    /// Skipped plays.
    pub left_out: usize,
}

/// Resources used by the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Time of each event, the first including the instantiation. From one run on a possibly busy machine: an
    /// indication.
    pub event_times: Vec<Duration>,
    /// Wasmtime fuel of each event, about one per instruction; empty on a host without metering.
    pub event_fuel: Vec<u64>,
    /// Linear memory at the end, which is its maximum.
    pub memory_bytes: usize,
}

impl Cost {
    /// The median of the events' times.
    pub(crate) fn median_time(&self) -> Duration {
        let mut times = self.event_times.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    /// The longest event time, without the instantiation.
    pub(crate) fn longest_time(&self) -> Duration {
        self.event_times.iter().skip(1).max().copied().unwrap_or_default()
    }
}

/// A play did not match the conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub fragmentation: Fragmentation,
    pub why: FailureKind,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fragmentation != Fragmentation::AsRecorded {
            write!(f, "{}: ", self.fragmentation)?;
        }
        write!(f, "{}", self.why)
    }
}

impl std::error::Error for Failure {}

/// Kind of failure.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum FailureKind {
    /// The guest did something else.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The guest failed.
    #[error("{}: the guest failed in {event}{}: {error}{}", place(*.line), size(*.bytes), trace(.backtrace))]
    Guest {
        /// The line of the event; 0 for the start and the end of the connection, which have no line.
        line: u32,
        event: &'static str,
        /// Size of the event's bytes.
        bytes: usize,
        error: String,
        /// Stack of the guest, one function per line, innermost first.
        backtrace: Option<String>,
    },
    /// A `timer` line expires a timer that the guest has not started.
    #[error("line {line}: expected the keepalive timer to run, the guest has not started it or has stopped it")]
    NoTimer {
        /// The `timer` line.
        line: u32,
    },
    /// A `deliver` line has a message that the guest has not subscribed to.
    #[error("line {line}: expected a subscription that {topic:?} fits, the guest has {}", listed(.filters))]
    NotSubscribed {
        /// The `deliver` line.
        line: u32,
        topic: String,
        /// The guest's subscriptions.
        filters: Vec<String>,
    },
    /// The guest's output exceeds the log, and so cannot be compared.
    #[error("{}: expected at most {} MiB of answers, the guest gave more", place(*.line), device::KEPT_BYTES_MAX >> 20)]
    TooMuch {
        /// The line of the event; 0 as above.
        line: u32,
    },
}

fn place(line: u32) -> String {
    match line {
        0 => "at the start or end of the connection".to_owned(),
        line => format!("line {line}"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        0 => String::new(),
        1 => " (1 byte)".to_owned(),
        more => format!(" ({more} bytes)"),
    }
}

fn trace(backtrace: &Option<String>) -> String {
    backtrace.as_ref().map(|text| format!("\n{text}")).unwrap_or_default()
}

fn listed(filters: &[String]) -> String {
    if filters.is_empty() { "none".to_owned() } else { filters.join(", ") }
}

/// Plays a conversation as recorded, then with all cuts that its transport allows; reports the first failure of each
/// kind.
///
/// Datagrams are not cut. If the play as recorded fails, other cuts are not tried. `metered` is the same guest on a
/// host with fuel metering.
pub(crate) async fn replay(
    guest: &Handler,
    metered: Option<&Handler>,
    conversation: &Conversation,
    options: Options,
) -> Report {
    let mut ids = Ids::default();
    let mut plays = PlayCounts { played: 1, ..PlayCounts::default() };
    let mut player = Player::new(guest, conversation, ids.next());
    let recorded = player.play(Fragmentation::AsRecorded).await;
    let mut cost = player.cost();
    if let Some(metered) = metered {
        let mut player = Player::new(metered, conversation, ids.next());
        // Its failures equal those of the play before; its fuel until then counts.
        drop(player.play(Fragmentation::AsRecorded).with_subscriber(NoSubscriber::new()).await);
        cost.event_fuel = player.cost().event_fuel;
    }
    if let Err(why) = recorded {
        return Report { failures: vec![Failure { fragmentation: Fragmentation::AsRecorded, why }], plays, cost };
    }

    let mut failures = Vec::new();
    let events = cost.event_times.len().max(1);
    let places_max = options.places_max.min((EVENTS_MAX / events).max(PLACES_MIN));
    for (kind, places) in fragmentation::kinds(conversation).into_iter().filter(|_| options.places_max > 0) {
        plays.left_out += places.saturating_sub(places_max);
        for (index, fragmentation) in fragmentation::spread(places, places_max).map(kind).enumerate() {
            if options.until.is_some_and(|until| Instant::now() >= until) {
                plays.left_out += places.min(places_max) - index;
                break;
            }
            plays.played += 1;
            match fragmentation {
                Fragmentation::Vanishing(_) => plays.vanished += 1,
                Fragmentation::AsRecorded
                | Fragmentation::After(_)
                | Fragmentation::EveryByte
                | Fragmentation::Joined => plays.cut += 1,
            }
            let mut player = Player::new(guest, conversation, ids.next());
            // Repeated guest logs are discarded; a failure has its own report.
            if let Err(why) = player.play(fragmentation).with_subscriber(NoSubscriber::new()).await {
                failures.push(Failure { fragmentation, why });
                break;
            }
        }
    }
    Report { failures, plays, cost }
}

/// Plays a conversation to record its answers, for [`bless`](crate::conversation::bless::bless).
///
/// # Errors
///
/// The guest failed, or a line of the conversation does not apply to it.
pub(crate) async fn record(guest: &Handler, conversation: &Conversation) -> Result<Happened, FailureKind> {
    Player::new(guest, conversation, Ids::default().next()).record().await
}

/// Length of each `>` line of a conversation.
fn frame_lengths(conversation: &Conversation) -> impl Iterator<Item = usize> {
    conversation.steps().filter_map(|(_, step)| match &step.action {
        Action::FromPeer(bytes) => Some(bytes.len()),
        Action::ToPeer(_) | Action::Publish(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => None,
    })
}

/// Connection ids, one per play.
#[derive(Default)]
struct Ids(u64);

impl Ids {
    fn next(&mut self) -> ConnId {
        self.0 += 1;
        ConnId::from_u64(self.0)
    }
}
