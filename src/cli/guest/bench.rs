//! `polygate guest bench`: the cost of an instance and of an event.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueHint;
use serde_json::{Value, json};

use super::loading::{Loading, Metered};
use super::{Error, bytes_text, thousands, time_text};
use crate::adapter::{Backend, DryRunAdapter};
use crate::conn::{ConnId, ConnInfo, Event, ListenAddr, PeerAddr, SocketKind};
use crate::conversation::{Action, Conversation, files, read_all};
use crate::handler::wasm::{Guest, Handler};

/// The maximum number of live instances for the measurement of memory, and their maximum memory: enough to distinguish
/// an instance's pages from noise, and small enough for a small machine.
const INSTANCES_MAX: usize = 1_000;
const INSTANCES_BYTES_MAX: usize = 1 << 30;

/// The duration of each measurement.
const SPAN: Duration = Duration::from_secs(1);

/// Calls before each measurement, to warm the caches.
const WARM_UP: usize = 100;

/// Measures the cost of an instance and of an event
///
/// Every connection has an instance of its own, so the memory of an instance is that of a connection. Without
/// conversations an event has the size of a small or a large frame; with conversations, their ">" lines are sent in
/// order on new connections. Adapter calls of the guest succeed at once. Figures are of one run on this machine:
/// compare them with those of another guest.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polygate guest bench handler.wasm\n  polygate guest bench handler.wasm conversations --json"
)]
pub(crate) struct Args {
    /// The guest, its limits and its settings.
    #[command(flatten)]
    pub loading: Loading,

    /// Conversations with ">" lines to use as events; for a folder, all its .conversation files
    #[arg(value_name = "CONVERSATION", value_hint = ValueHint::AnyPath)]
    pub conversations: Vec<PathBuf>,

    /// Prints one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// The cost of instances.
struct Instances {
    count: usize,
    make: Duration,
    drop: Duration,
    /// Private memory of the process for each instance; `None` if the system does not report it.
    private_bytes: Option<u64>,
    memory_bytes: usize,
}

/// The cost of one kind of event.
struct Calls {
    what: String,
    count: u64,
    each: Duration,
}

/// Runs the subcommand: the figures go to `out`.
///
/// # Errors
///
/// It could not start, or the guest failed.
pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<ExitCode, Error> {
    let conversations = read_all(&files(&args.conversations)?).map_err(Error::Conversations)?;
    let loaded = args.loading.load(Metered::No).await?;
    let instances = measure_instances(&loaded.handler).await?;
    let mut calls = Vec::new();
    if conversations.is_empty() {
        for (what, len) in [("64 bytes", 64), ("4 KiB", 4096)] {
            let frames = [Bytes::from(vec![b'x'; len])];
            calls.push(measure_calls(&loaded.handler, what.to_owned(), &frames, Connections::One).await?);
        }
    } else {
        for conversation in &conversations {
            let frames = frames(conversation);
            if !frames.is_empty() {
                let what = conversation.name().to_owned();
                calls.push(measure_calls(&loaded.handler, what, &frames, Connections::Each).await?);
            }
        }
    }
    if args.json {
        writeln!(out, "{}", as_json(&args.loading, &instances, &calls))?;
    } else {
        write!(out, "{}", as_text(&instances, &calls))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn frames(conversation: &Conversation) -> Vec<Bytes> {
    let frames = conversation.steps().filter_map(|(_, step)| match &step.action {
        Action::FromPeer(bytes) => Some(bytes.clone()),
        Action::ToPeer(_) | Action::Publish(_) | Action::Deliver(_) | Action::Timer(_) | Action::Close(_) => None,
    });
    frames.collect()
}

/// Makes instances that are all live at once, sends each its first event and 64 bytes, and drops them.
async fn measure_instances(handler: &Handler) -> Result<Instances, Error> {
    // The first one makes the shared state.
    let mut first = Connection::open(handler, 0).await?;
    let frame = Event::ReceivedBytes(Bytes::from_static(&[b'x'; 64]));
    first.call(&frame).await?;
    let memory_bytes = first.guest.usage().memory_bytes;
    let count = (INSTANCES_BYTES_MAX / memory_bytes.max(1)).clamp(1, INSTANCES_MAX);

    let before = private_bytes();
    let mut connections = Vec::with_capacity(count);
    let begun = Instant::now();
    for id in 1..=count {
        connections.push(Connection::open(handler, id as u64).await?);
    }
    let make = begun.elapsed() / u32::try_from(count).unwrap_or(u32::MAX);
    for connection in &mut connections {
        connection.call(&frame).await?;
    }
    let after = private_bytes();
    let begun = Instant::now();
    drop(connections);
    let drop = begun.elapsed() / u32::try_from(count).unwrap_or(u32::MAX);
    let private_bytes = before.zip(after).map(|(before, after)| after.saturating_sub(before) / count as u64);
    Ok(Instances { count, make, drop, private_bytes, memory_bytes })
}

/// The connections of the events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Connections {
    /// One for all.
    One,
    /// A new one for each repetition of the frames; its creation is not counted.
    Each,
}

/// Calls the guest with the frames repeatedly for the duration.
async fn measure_calls(
    handler: &Handler,
    what: String,
    frames: &[Bytes],
    connections: Connections,
) -> Result<Calls, Error> {
    let events: Vec<Event> = frames.iter().cloned().map(Event::ReceivedBytes).collect();
    let (mut count, mut took) = (0_u64, Duration::ZERO);
    let mut connection = Connection::open(handler, 1).await?;
    for event in events.iter().cycle().take(WARM_UP.min(events.len() * WARM_UP)) {
        if connection.has_ended() {
            connection = Connection::open(handler, 1).await?;
        }
        connection.call(event).await?;
    }
    let end = Instant::now() + SPAN;
    while Instant::now() < end {
        if connections == Connections::Each || connection.has_ended() {
            connection = Connection::open(handler, 1).await?;
        }
        let begun = Instant::now();
        for event in &events {
            if connection.has_ended() {
                break;
            }
            connection.call(event).await?;
            count += 1;
        }
        took += begun.elapsed();
    }
    let each = Duration::from_secs_f64(took.as_secs_f64() / count.max(1) as f64);
    Ok(Calls { what, count, each })
}

/// One connection of the guest, whose adapter calls succeed without effect.
struct Connection {
    guest: Guest,
    backend: Option<Backend>,
    has_ended: bool,
}

impl Connection {
    async fn open(handler: &Handler, id: u64) -> Result<Self, Error> {
        let conn = ConnId::from_u64(id);
        let nowhere = ([127, 0, 0, 1], 0).into();
        let info = Arc::new(ConnInfo {
            kind: SocketKind::Tcp,
            peer: PeerAddr(nowhere),
            local: ListenAddr(nowhere),
            certificate: None,
        });
        let backend = Backend::DryRun(Box::new(DryRunAdapter::strict(conn)));
        let mut connection = Self { guest: handler.attach(conn, &info), backend: Some(backend), has_ended: false };
        connection.call(&Event::SocketCreated(info)).await?;
        Ok(connection)
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }

    async fn call(&mut self, event: &Event) -> Result<(), Error> {
        // It is put back after each call, below.
        let Some(backend) = self.backend.take() else { return Ok(()) };
        let (mut backend, result) = self.guest.call(backend, event).await;
        if let Backend::DryRun(dry_run) = &mut backend {
            let (asked, _) = dry_run.take();
            self.has_ended |= asked.contains(&crate::conn::Command::Close);
        }
        self.backend = Some(backend);
        result.map_err(|why| Error::Failed { event: event.name(), why })
    }
}

/// Private memory of this process as the kernel reports it.
fn private_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let lines = text.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"));
    Some(lines.filter_map(kib).sum::<u64>() << 10)
}

/// Whether this is a debug build, whose figures mean little.
fn is_debug() -> bool {
    cfg!(debug_assertions)
}

fn as_text(instances: &Instances, calls: &[Calls]) -> String {
    let mut text = String::new();
    if is_debug() {
        text.push_str("This is a debug build: the host is slower than in a release, the guest is not.\n\n");
    }
    let private = instances.private_bytes.map_or_else(|| "not known here".to_owned(), bytes_text);
    let memory = bytes_text(instances.memory_bytes as u64);
    let rows = [
        ("made, with its first event", time_text(instances.make)),
        ("dropped", time_text(instances.drop)),
        ("memory of the process, after an event", private),
        ("linear memory, most of it untouched", memory),
    ];
    text.push_str(&format!("an instance, of {} at once\n", thousands(instances.count as u64)));
    for (what, value) in rows {
        text.push_str(&format!("  {what:<40} {value:>10}\n"));
    }
    text.push_str("an event\n");
    for call in calls {
        let (each, rate) = (time_text(call.each), thousands((1.0 / call.each.as_secs_f64().max(1e-9)) as u64));
        text.push_str(&format!("  {:<40} {each:>10}   {rate}/s, {} calls\n", call.what, thousands(call.count)));
    }
    text
}

fn as_json(loading: &Loading, instances: &Instances, calls: &[Calls]) -> Value {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let calls: Vec<Value> =
        calls.iter().map(|call| json!({ "what": call.what, "calls": call.count, "ns": nanos(call.each) })).collect();
    json!({
        "file": loading.file,
        "debug_build": is_debug(),
        "instance": {
            "count": instances.count,
            "make_ns": nanos(instances.make),
            "drop_ns": nanos(instances.drop),
            "process_bytes": instances.private_bytes,
            "linear_bytes": instances.memory_bytes,
        },
        "events": calls,
    })
}
