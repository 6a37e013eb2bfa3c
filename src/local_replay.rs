//! Plays conversations against a guest in its real host: no gateway, no socket, no broker.
//!
//! The guest runs as it runs in the gateway, with its limits; what it asks for is answered by the rules of a connection
//! where everybody may do everything, and has no effect. Time is virtual: a timer that the conversation lets run out runs
//! out at once. The guest's own clock and its random numbers are real, so what depends on them stands as `??` or `"*"` in
//! the conversation.
//!
//! A stream has no frames, so a handler must do the same however its bytes are cut. [`replay`] plays a conversation as
//! it was recorded, and then with other cuts ([`Fragmentation`]); in each play everything must be as the conversation says. And a
//! device may vanish after any byte: there the guest must only not fail.

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

/// Places that each frame is cut at, and bytes after which the device vanishes, when nothing else is asked for: as many
/// as nearly all frames have, and a second or so for a guest that takes 100 microseconds to start.
pub(crate) const PLACES_MAX: usize = 4096;

/// Events of all plays of one conversation: what a guest handles in a minute or so. A conversation of very many events is
/// played with fewer cuts.
const EVENTS_MAX: usize = 1_000_000;

/// Cuts of each kind that are played however many events a conversation has.
const PLACES_MIN: usize = 16;

/// How a conversation is rehearsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// At how many places each frame is cut, and after how many bytes the device vanishes; 0 plays it as recorded only.
    pub places_max: usize,
    /// After this no more plays are begun; those that are left out are counted. What was recorded is played in any case.
    pub until: Option<Instant>,
}

impl Default for Options {
    fn default() -> Self {
        Self { places_max: PLACES_MAX, until: None }
    }
}

/// What came of one conversation.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Why it failed: the first failure of each kind of cuts; empty when all went as it says.
    pub failures: Vec<Failure>,
    /// The cuts that it was played with, and how many plays that took.
    pub plays: PlayCounts,
    /// What each event took, as recorded.
    pub cost: Cost,
}

impl Report {
    /// Whether all went as the conversation says.
    pub(crate) fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// How often a conversation was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlayCounts {
    /// In all.
    pub played: usize,
    /// Of these with frames cut otherwise than recorded.
    pub cut: usize,
    /// Of these with a device that vanishes.
    pub vanished: usize,
    /// Plays that there could have been more.
    pub left_out: usize,
}

/// What the guest took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// How long each event took, the first with the making of the instance. Of one run on a machine that may have been
    /// busy: an indication.
    pub event_times: Vec<Duration>,
    /// What each event executed, in wasmtime's fuel, which is about an instruction; empty on a host that does not meter.
    pub event_fuel: Vec<u64>,
    /// Its linear memory at the end, which is its largest.
    pub memory_bytes: usize,
}

impl Cost {
    /// The median of the events' times.
    pub(crate) fn median_time(&self) -> Duration {
        let mut times = self.event_times.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    /// The longest of the events' times, without the making of the instance.
    pub(crate) fn longest_time(&self) -> Duration {
        self.event_times.iter().skip(1).max().copied().unwrap_or_default()
    }
}

/// A play did not go as the conversation says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// How the device's bytes came.
    pub fragmentation: Fragmentation,
    /// What happened.
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

/// What happened instead.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum FailureKind {
    /// Something else came.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The guest failed.
    #[error("{}: the guest failed in {event}{}: {error}{}", place(*.line), size(*.bytes), trace(.backtrace))]
    Guest {
        /// The line whose event it failed in; 0 for the connection's beginning and its end, which no line tells.
        line: u32,
        /// The event.
        event: &'static str,
        /// How many bytes came with it.
        bytes: usize,
        /// What happened.
        error: String,
        /// Where the guest was, a function a line, innermost first.
        backtrace: Option<String>,
    },
    /// A timer is to run out that the guest has not started.
    #[error("line {line}: expected the keepalive timer to run, the guest has not started it or has stopped it")]
    NoTimer {
        /// The `timer` line.
        line: u32,
    },
    /// A message is to arrive that the guest has not subscribed to.
    #[error("line {line}: expected a subscription that {topic:?} fits, the guest has {}", listed(.filters))]
    NotSubscribed {
        /// The `deliver` line.
        line: u32,
        /// The message's topic.
        topic: String,
        /// What the guest has subscribed to.
        filters: Vec<String>,
    },
    /// The guest asked for so much that it was not kept, and so cannot be compared.
    #[error("{}: expected at most {} MiB of answers, the guest gave more", place(*.line), device::KEPT_BYTES_MAX >> 20)]
    TooMuch {
        /// The line that it answers; 0 as above.
        line: u32,
    },
}

fn place(line: u32) -> String {
    match line {
        0 => "at the connection's beginning or end".to_owned(),
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

/// Plays a conversation as recorded, then with all the cuts that its transport allows; tells the first failure of each.
///
/// A datagram is not cut, since it comes whole or not at all. When the conversation does not even go as recorded, other
/// cuts are not tried. `metered` is the same guest on a host that meters.
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
        // Its failures are those of the play before; what it executed until then counts.
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
            // What the guest says each time again helps nobody; where it fails is told with the failure.
            if let Err(why) = player.play(fragmentation).with_subscriber(NoSubscriber::new()).await {
                failures.push(Failure { fragmentation, why });
                break;
            }
        }
    }
    Report { failures, plays, cost }
}

/// Plays a conversation to learn its answers, for [`bless`](crate::conversation::bless::bless).
///
/// # Errors
///
/// The guest failed, or could not be told what the conversation says.
pub(crate) async fn record(guest: &Handler, conversation: &Conversation) -> Result<Happened, FailureKind> {
    Player::new(guest, conversation, Ids::default().next()).record().await
}

/// How long each `>` line of a conversation is.
fn frame_lengths(conversation: &Conversation) -> impl Iterator<Item = usize> {
    conversation.steps().filter_map(|(_, step)| match &step.action {
        Action::FromPeer(bytes) => Some(bytes.len()),
        Action::ToPeer(_) | Action::Publish(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => None,
    })
}

/// Each play is another connection.
#[derive(Default)]
struct Ids(u64);

impl Ids {
    fn next(&mut self) -> ConnId {
        self.0 += 1;
        ConnId::from_u64(self.0)
    }
}
