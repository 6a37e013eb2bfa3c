//! `polygate guest test`: replays recorded conversations against a guest in its real host.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueHint;
use serde_json::{Value, json};

use super::loading::{Loaded, Loading, Metered};
use super::{Error, bytes_text, count, thousands, time_text};
use crate::cli::replay::replace;
use crate::conversation::bless::bless;
use crate::conversation::{Conversation, files, read_all};
use crate::local_replay::{self, Cost, Options, PLACES_MAX, Report, record, replay};

/// Replays conversations against a guest, with the device's bytes split at every position
///
/// Each conversation is played as recorded; then with each ">" line split in two at every position, byte by byte, and
/// with the lines joined: a stream has no frames, and the result must be the same each time. Then the device
/// disconnects after every byte, which must not make the guest fail. Everything runs in this process, with the
/// gateway's own limits: there is no socket, no broker and no waiting; timers expire at the lines of the conversation.
///
/// Exits with 0 if all conversations went as recorded, with 1 otherwise.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  polygate guest test handler.wasm conversations\n  polygate guest test handler.wasm night.conversation --setting timezone=+08:00 --bless"
)]
pub(crate) struct Args {
    /// The guest, its limits and its settings.
    #[command(flatten)]
    pub loading: Loading,

    /// Files with one conversation each; for a folder, all its .conversation files
    #[arg(value_name = "CONVERSATION", required = true, value_hint = ValueHint::AnyPath)]
    pub conversations: Vec<PathBuf>,

    /// Maximum number of split positions of a ">" line, and of disconnects; 0 plays as recorded only
    #[arg(long, value_name = "N", default_value_t = PLACES_MAX)]
    pub cuts_max: usize,

    /// Does not compare: records the behaviour of the guest in the files
    #[arg(long, conflicts_with_all = ["cuts_max", "json"])]
    pub bless: bool,

    /// Prints one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Runs the subcommand: the result goes to `out`.
///
/// # Errors
///
/// It could not start. Failed conversations are a result: they are printed, and the code is 1.
pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<ExitCode, Error> {
    let paths = files(&args.conversations)?;
    let conversations = read_all(&paths).map_err(Error::Conversations)?;
    let loaded = args.loading.load(Metered::No).await?;
    if args.bless {
        bless_all(&loaded, &paths, &conversations, out).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let metered = args.loading.load(Metered::Yes).await?;
    let mut reports = Vec::new();
    for conversation in &conversations {
        let options = Options { places_max: args.cuts_max, ..Options::default() };
        let report = replay(&loaded.handler, Some(&metered.handler), conversation, options).await;
        if !args.json {
            write!(out, "{}", as_text(conversation.name(), &report))?;
            out.flush()?;
        }
        reports.push(report);
    }
    let failed = reports.iter().filter(|report| !report.is_good()).count();
    if args.json {
        let outcomes =
            conversations.iter().zip(&reports).map(|(conversation, report)| as_json(conversation.name(), report));
        let outcomes: Vec<Value> = outcomes.collect();
        let file = &args.loading.file;
        writeln!(out, "{}", json!({ "file": file, "passed": failed == 0, "conversations": outcomes }))?;
    } else {
        let plays = reports.iter().map(|report| report.plays.played).sum();
        let good = reports.len() - failed;
        let (all, plays) = (count(reports.len(), "conversation"), count(plays, "play"));
        writeln!(out, "{all}, {good} as recorded, {failed} failed; {plays}")?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn bless_all(
    loaded: &Loaded,
    paths: &[PathBuf],
    conversations: &[Conversation],
    out: &mut impl Write,
) -> Result<(), Error> {
    for (path, conversation) in paths.iter().zip(conversations) {
        let failed = |why: String| Error::Record { name: conversation.name().to_owned(), why };
        let happened = record(&loaded.handler, conversation).await.map_err(|why| failed(why.to_string()))?;
        let blessed = bless(conversation, &happened).map_err(|early| failed(early.to_string()))?;
        let text = blessed.to_string();
        Conversation::parse(conversation.name(), &text)
            .map_err(|faults| failed(format!("the recorded conversation could not be read back: {faults}")))?;
        let unchanged = blessed == *conversation;
        if !unchanged {
            write_file(path, &text)?;
        }
        writeln!(out, "{}  {}", conversation.name(), if unchanged { "unchanged" } else { "recorded" })?;
    }
    Ok(())
}

fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    replace(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn as_text(name: &str, report: &Report) -> String {
    let Report { failures, plays, cost } = report;
    if failures.is_empty() {
        let less = match plays.left_out {
            0 => String::new(),
            more => format!(" (of {})", thousands((plays.played + more) as u64)),
        };
        let events = count(cost.event_times.len(), "event");
        return format!("ok      {name}  {events}, {}{less}, {}\n", count(plays.played, "play"), cost_text(cost));
    }
    let mut text = String::new();
    for failure in failures {
        text.push_str(&format!("failed  {name}: {failure}\n"));
    }
    text
}

/// The cost of a conversation's events: fuel and memory are reproducible, times are not.
fn cost_text(cost: &Cost) -> String {
    let mut text = String::new();
    if let Some(most) = cost.event_fuel.iter().max() {
        let total = thousands(cost.event_fuel.iter().sum());
        text.push_str(&format!("fuel {total} (most in one event {}), ", thousands(*most)));
    }
    let (median, longest) = (time_text(cost.median_time()), time_text(cost.longest_time()));
    text.push_str(&format!("{}, about {median} an event (longest {longest})", bytes_text(cost.memory_bytes as u64)));
    text
}

fn as_json(name: &str, report: &Report) -> Value {
    let local_replay::PlayCounts { played, cut, vanished, left_out } = report.plays;
    let cost = &report.cost;
    let micros = |time: std::time::Duration| (time.as_secs_f64() * 1e8).round() / 1e2;
    let failures: Vec<Value> = report
        .failures
        .iter()
        .map(|failure| json!({ "cuts": failure.fragmentation.to_string(), "why": failure.why.to_string() }))
        .collect();
    json!({
        "name": name,
        "passed": report.is_good(),
        "failures": failures,
        "plays": { "played": played, "cut": cut, "vanished": vanished, "left_out": left_out },
        "events": cost.event_times.len(),
        "fuel": (!cost.event_fuel.is_empty()).then(|| json!({
            "total": cost.event_fuel.iter().sum::<u64>(),
            "event_max": cost.event_fuel.iter().max(),
        })),
        "memory_bytes": cost.memory_bytes,
        "indicative": { "event_us_median": micros(cost.median_time()), "event_us_longest": micros(cost.longest_time()) },
    })
}
