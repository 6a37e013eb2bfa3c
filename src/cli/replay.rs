//! `polygate replay`: plays the device's side of recorded conversations against a gateway.
//!
//! Owns the concurrent connections, their pace and the result counts; ends when each has
//! played its conversations, or with Ctrl-C. [`play`] plays one conversation.

use std::io::Write;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{ValueEnum, ValueHint};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::conversation::play::mqtt_observer::{self, Watch};
use crate::conversation::play::{
    BrokerUrl, GatewayAddr, MqttObserver, ObserverError, Options, Outcome, PlayError, Played, play,
};
use crate::conversation::run::Replies;
use crate::conversation::{Conversation, ReadError};
use crate::error::report;

mod record;
mod report;

pub(crate) use record::RecordError;
pub(super) use record::replace;
use report::Report;

/// Maximum number of results that wait to be counted; further plays wait.
const RESULTS_MAX: usize = 256;

/// Plays the device's side of recorded conversations against a gateway.
///
/// Each connection plays at least one conversation and each conversation is played at least once; files are reused. A
/// conversation has the identity of its device: with more connections than files the same device connects several
/// times, and the gateway may close the older connection of the two. Frames are not rewritten for each connection,
/// because of their checksums: give as many conversations as devices.
///
/// Prints how many conversations went as recorded, the latency from each ">" line to the end of the next "<" line, and
/// the first failures. Exits with 0 if all went as recorded, 1 if any failed, 2 for wrong usage.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  polygate replay night.conversation --to tcp://127.0.0.1:7993\n  polygate replay *.conversation --to tcp://127.0.0.1:7993 --connections 20 --rate 100/s"
)]
pub struct Args {
    /// Files with one conversation each
    #[arg(value_name = "CONVERSATION", required = true, value_hint = ValueHint::FilePath)]
    pub conversations: Vec<PathBuf>,

    /// The gateway's listener: tcp://host:port
    #[arg(long, value_name = "ADDRESS")]
    pub to: GatewayAddr,

    /// Number of concurrent connections, each playing one conversation at a time
    #[arg(long, value_name = "N", default_value = "1")]
    pub connections: NonZeroU32,

    /// Rate at which conversations start over all connections, for example 100/s; default: as soon as a connection is
    /// free
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<f64>,

    /// Repetitions of the conversations of each connection
    #[arg(long, visible_alias = "repeat", value_name = "N", default_value = "1")]
    pub loops: NonZeroU64,

    /// Keep the recorded times: 1 as recorded, 10 ten times as fast; default: ignore them
    #[arg(long, value_name = "FACTOR", value_parser = parse_speed)]
    pub speed: Option<f64>,

    /// Comparison of the bytes from the gateway
    #[arg(long, value_enum, default_value_t = ComparedReplies::Exact)]
    pub replies: ComparedReplies,

    /// Timeout of the connect and of each expected line
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    pub timeout: Duration,

    /// Maximum silence for a "timer" line, "close keepalive" and "close idle"; without it, conversations that depend
    /// on a timer are refused
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timer_wait: Option<Duration>,

    /// The broker behind the gateway, mqtt://USER:PASSWORD@HOST:PORT (login and port are optional): to check "publish"
    /// lines and to publish "deliver" lines. With it, a conversation is played by one connection at a time
    #[arg(long, value_name = "URL", env = "POLYGATE_REPLAY_MQTT", hide_env_values = true)]
    pub mqtt: Option<BrokerUrl>,

    /// The expanded mountpoint of the listener, for example trackers/
    #[arg(long, value_name = "TEXT", default_value = "", requires = "mqtt")]
    pub mountpoint: String,

    /// Do not compare: record the responses of the gateway in the files, one after the other
    #[arg(long, conflicts_with_all = ["connections", "rate", "loops", "speed", "replies"])]
    pub bless: bool,

    /// With --bless: a response is complete after this silence
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_time, requires = "bless")]
    pub quiet: Duration,
}

/// Comparison of the bytes from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComparedReplies {
    /// Every byte must be expected and match
    Exact,
    /// Only the number of bytes of each "<" line counts: for load on a gateway with other responses
    Counted,
}

impl From<ComparedReplies> for Replies {
    fn from(replies: ComparedReplies) -> Self {
        match replies {
            ComparedReplies::Exact => Self::Exact,
            ComparedReplies::Counted => Self::Counted,
        }
    }
}

/// The replay could not start, or its result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All files that cannot be read or parsed.
    #[error("{}", .0.iter().map(|error| report(error)).collect::<Vec<_>>().join("\n"))]
    Conversations(Vec<ReadError>),
    /// More connections than conversations, with a broker.
    #[error(
        "expected at most {conversations} connections with --mqtt, one for each conversation, found {connections}: \
         the messages of two connections with the same conversation cannot be distinguished"
    )]
    TooManyConnections {
        /// The requested number.
        connections: u32,
        /// The number of conversations.
        conversations: usize,
    },
    /// The broker failed.
    #[error(transparent)]
    MqttObserver(#[from] ObserverError),
    /// A conversation could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The output cannot be written.
    #[error("cannot write the result")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// 2 for wrong usage, 1 for the rest.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::TooManyConnections { .. } => ExitCode::from(2),
            Self::Conversations(_) | Self::MqttObserver(_) | Self::Record(_) | Self::Output(_) => ExitCode::FAILURE,
        }
    }
}

/// Runs the subcommand; results go to standard output.
///
/// # Errors
///
/// It could not start (see [`Error`]). Failed conversations are a result: they are printed, and the code is 1.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    run_to(args, &mut std::io::stdout()).await
}

/// Runs the subcommand; results go to `out`.
///
/// # Errors
///
/// As [`run`].
pub async fn run_to(args: Args, out: &mut (impl Write + Send)) -> Result<ExitCode, Error> {
    let conversations = read_all(&args.conversations)?;
    if args.bless {
        record::record_all(&args, &conversations, out).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let connections = args.connections.get();
    if args.mqtt.is_some() && connections as usize > conversations.len() {
        return Err(Error::TooManyConnections { connections, conversations: conversations.len() });
    }
    let observer = match &args.mqtt {
        None => None,
        Some(broker) => {
            let watch = Watch::Topics(mqtt_observer::topics(&conversations));
            Some(MqttObserver::connect(broker, &args.mountpoint, watch, args.timeout).await?)
        }
    };
    let replay = Arc::new(Replay {
        conversations,
        to: args.to.clone(),
        options: options(&args),
        observer,
        rate: args.rate,
        loops: args.loops.get(),
        connections,
        begun: Instant::now(),
        next_slot: AtomicU64::new(0),
        stop: CancellationToken::new(),
    });
    let report = replay.run_all().await;
    if let Some(Replay { observer: Some(observer), .. }) = Arc::into_inner(replay) {
        observer.close(args.timeout).await;
    }
    out.write_all(report.to_string().as_bytes())?;
    out.flush()?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options(args: &Args) -> Options {
    let (timeout, timer_wait, speed) = (args.timeout, args.timer_wait, args.speed);
    Options { timeout, timer_wait, speed, replies: args.replies.into(), ..Options::default() }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Conversation>, Error> {
    let (mut read, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        match Conversation::read(path) {
            Ok(conversation) => read.push(conversation),
            Err(error) => faults.push(error),
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(Error::Conversations(faults)) }
}

/// The shared state of all connections.
struct Replay {
    conversations: Vec<Conversation>,
    to: GatewayAddr,
    options: Options,
    observer: Option<MqttObserver>,
    rate: Option<f64>,
    loops: u64,
    connections: u32,
    begun: Instant,
    /// The number of started conversations, for the pace.
    next_slot: AtomicU64,
    stop: CancellationToken,
}

/// The result of one play.
struct Ended {
    /// Index of the conversation.
    conversation: usize,
    /// From each `>` line to the next `<` line.
    latencies: Vec<Duration>,
    played: Result<Played, PlayError>,
}

impl Replay {
    /// Plays all conversations, and counts.
    async fn run_all(self: &Arc<Self>) -> Report {
        let (results, mut ended) = mpsc::channel(RESULTS_MAX);
        let mut connections = JoinSet::new();
        for connection in 0..self.connections {
            connections.spawn(Arc::clone(self).play_share(connection, results.clone()));
        }
        drop(results);

        let mut report = Report::new(self.connections);
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            tokio::select! {
                next = ended.recv() => match next {
                    Some(Ended { conversation, latencies, played }) => {
                        let name = self.conversations.get(conversation).map_or("", Conversation::name);
                        report.count(name, &latencies, played);
                    }
                    None => break,
                },
                // Without the signal there is only no way to stop early.
                Ok(()) = &mut interrupted, if !self.stop.is_cancelled() => {
                    self.stop.cancel();
                    report.interrupt();
                }
            }
        }
        // Their channel is closed, so they have ended or are about to; a panic in one of them is our bug, reported
        // here.
        while let Some(joined) = connections.join_next().await {
            if let Err(error) = joined {
                report.count_broken(&error);
            }
        }
        report.finish(self.begun.elapsed());
        report
    }

    /// Plays the conversations of one connection: always the same, so none is played twice at once if there are enough.
    async fn play_share(self: Arc<Self>, connection: u32, results: mpsc::Sender<Ended>) {
        let files = self.conversations.len();
        let width = self.connections as usize;
        for _ in 0..self.loops {
            for place in (connection as usize..width.max(files)).step_by(width) {
                let conversation = place % files;
                let Some(ended) = self.stop.run_until_cancelled(self.play_one(conversation)).await else {
                    return;
                };
                if results.send(ended).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn play_one(&self, index: usize) -> Ended {
        self.pace().await;
        let mut latencies = Vec::new();
        let played = match self.conversations.get(index) {
            Some(conversation) => {
                play(conversation, &self.to, self.observer.as_ref(), &self.options, |progress| {
                    if let Outcome::Met { latency: Some(latency) } = progress.outcome {
                        latencies.push(latency);
                    }
                })
                .await
            }
            None => Ok(Played::default()),
        };
        Ended { conversation: index, latencies, played }
    }

    /// Waits for the next slot of the pace. A late play starts at once: the average rate is kept while connections are
    /// free.
    async fn pace(&self) {
        if let Some(rate) = self.rate {
            let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
            // Slots are far below 2^53, where every integer is a double.
            let after = Duration::try_from_secs_f64(slot as f64 / rate).unwrap_or(crate::conversation::OFFSET_MAX);
            tokio::time::sleep_until(self.begun + after.min(crate::conversation::OFFSET_MAX)).await;
        }
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time between 1ms and 24h, for example 500ms or 30s";
    let time = humantime::parse_duration(text).map_err(|_| EXPECTED.to_owned())?;
    let range = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);
    if range.contains(&time) { Ok(time) } else { Err(EXPECTED.to_owned()) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    positive(text.strip_suffix("/s").unwrap_or(text))
        .ok_or("expected a rate between 0.001/s and 1000000/s, for example 100/s".to_owned())
}

fn parse_speed(text: &str) -> Result<f64, String> {
    positive(text).ok_or("expected a factor between 0.001 and 1000000, for example 1 or 10".to_owned())
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number| (0.001..=1_000_000.0).contains(number))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("replay").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line() {
        let args =
            parse("a b --to tcp://gw:1 --connections 20 --rate 2.5/s --repeat 3 --speed 10 --timer-wait 2m").unwrap();
        assert_eq!((args.connections.get(), args.loops.get()), (20, 3));
        assert_eq!((args.rate, args.speed), (Some(2.5), Some(10.0)));
        assert_eq!((args.timeout, args.timer_wait), (Duration::from_secs(5), Some(Duration::from_secs(120))));
        assert_eq!(args.replies, ComparedReplies::Exact);
    }

    #[test]
    fn usage_errors_have_the_expected_value() {
        let cases = [
            ("--to tcp://gw:1", "<CONVERSATION>"),
            ("a", "--to <ADDRESS>"),
            ("a --to gw:1", "expected a gateway as tcp://host:port, found \"gw:1\""),
            ("a --to tcp://gw:1 --connections 0", "number would be zero"),
            ("a --to tcp://gw:1 --rate 0", "expected a rate between"),
            ("a --to tcp://gw:1 --rate NaN", "expected a rate between"),
            ("a --to tcp://gw:1 --speed -1", "-1"),
            ("a --to tcp://gw:1 --timeout 0s", "expected a time between 1ms and 24h"),
            ("a --to tcp://gw:1 --mountpoint x/", "--mqtt"),
            ("a --to tcp://gw:1 --bless --connections 2", "cannot be used with"),
        ];
        for (line, expected) in cases {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
