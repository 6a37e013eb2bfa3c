//! `polygate demo`: a gateway with recorded devices and an MQTT client.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::conversation::play::mqtt_observer::{self, Watch};
use crate::conversation::play::{BrokerUrl, GatewayAddr, MqttObserver, Options, play};
use crate::conversation::{Action, Conversation};
use crate::error::report;
use crate::gateway::{Bound, Gateway};

mod positions;

use positions::Position;

/// The guest of the demo, embedded, so that there is nothing to build or install first.
const COMPONENT: &[u8] = include_bytes!("../../guests/dist/jt808.wasm");

/// The configuration of the demo; free ports, so it runs beside any other program.
const CONFIG: &str = include_str!("demo/demo.toml");

/// Recorded terminals: name and text of each conversation.
const CONVERSATIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/demo_conversations.rs"));

/// Terminals connected at a time.
const TERMINALS_AT_ONCE: usize = 4;

/// Positions queued for printing.
const POSITIONS_WAITING_MAX: usize = 1024;

/// Timeout of the last positions.
const LAST_POSITIONS: Duration = Duration::from_secs(5);

/// Timeout of the subscription at the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Demo: recorded trackers in, positions over MQTT out, nothing to install.
///
/// Starts a gateway with the embedded broker and the JT/T 808 guest on free loopback ports, replays recorded
/// trackers against it and prints the positions that an MQTT client receives. Then it continues to serve, and
/// prints how to connect a device and an MQTT client.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate demo")]
pub(crate) struct Args {
    /// Exit after the replay
    #[arg(long)]
    once: bool,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot make a temporary directory")]
    Dir(#[source] io::Error),
    #[error("the configuration of the demo has faults:\n{0}")]
    Config(crate::config::Faults),
    #[error(transparent)]
    Start(#[from] crate::gateway::StartError),
    #[error("the conversations of the demo have faults")]
    Conversations(#[from] crate::conversation::Faults),
    #[error(transparent)]
    MqttObserver(#[from] crate::conversation::play::ObserverError),
    #[error(transparent)]
    Positions(#[from] positions::SubscribeError),
    #[error("the gateway has no port for {0}")]
    NoPort(&'static str),
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
}

/// Exit code 0 if every recorded terminal was served and every position arrived, else 1.
pub(crate) async fn run(args: Args) -> ExitCode {
    match run_demo(args).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("polygate: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run_demo(args: Args) -> Result<ExitCode, Error> {
    let dir = TempDir::with_prefix("polygate-demo-").map_err(Error::Dir)?;
    let config = configure(dir.path())?;
    let gateway = Gateway::start(config).await?;
    let bound = gateway.bound().clone();
    let listener = bound.listener("trackers").ok_or(Error::NoPort("devices"))?;
    let broker = bound.broker.ok_or(Error::NoPort("MQTT"))?;

    let conversations = conversations()?;
    let expected = conversations.iter().map(positions_in).sum();
    let positions = positions::subscribe(broker, POSITIONS_WAITING_MAX, BROKER_TIMEOUT).await?;
    let observer = MqttObserver::connect(
        &broker_url(broker),
        "",
        Watch::Topics(mqtt_observer::topics(&conversations)),
        BROKER_TIMEOUT,
    )
    .await?;

    println!(
        "{} recorded connections of trackers now come to {listener}; their positions, as an MQTT client gets them:\n",
        conversations.len()
    );
    let progress = progress_bar(conversations.len() as u64);
    let printing = tokio::spawn(print_positions(positions, progress.clone(), expected));
    let failures = replay(&conversations, listener, &observer, &progress).await;
    let arrived = printing.await.unwrap_or(Ok(0)).map_err(Error::Output)?;
    progress.finish_and_clear();
    observer.close(BROKER_TIMEOUT).await;

    println!("\n{} connections replayed, {arrived} of {expected} positions arrived over MQTT.", conversations.len());
    for failure in &failures {
        println!("not as recorded: {failure}");
    }
    let fine = failures.is_empty() && arrived == expected;
    if !args.once {
        explain(&bound, listener, broker, dir.path());
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "cannot wait for Ctrl-C");
        }
    }
    gateway.stop().await;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the guest and its configuration to files, and loads them like those of a user.
fn configure(dir: &Path) -> Result<Config, Error> {
    std::fs::write(dir.join("jt808.wasm"), COMPONENT).map_err(Error::Dir)?;
    std::fs::write(dir.join("polygate.toml"), CONFIG).map_err(Error::Dir)?;
    let (config, _) = Config::load(&dir.join("polygate.toml")).map_err(Error::Config)?;
    Ok(config)
}

fn conversations() -> Result<Vec<Conversation>, Error> {
    CONVERSATIONS.iter().map(|(name, text)| Ok(Conversation::parse(*name, text)?)).collect()
}

fn broker_url(broker: SocketAddr) -> BrokerUrl {
    BrokerUrl::from(broker)
}

/// The number of positions that a conversation publishes.
fn positions_in(conversation: &Conversation) -> usize {
    let is_position =
        |action: &Action| matches!(action, Action::Publish(message) if message.topic.ends_with("/location"));
    conversation.steps().filter(|(_, step)| is_position(&step.action)).count()
}

/// Plays all conversations, some at a time; returns the failures.
async fn replay(
    conversations: &[Conversation],
    listener: SocketAddr,
    observer: &MqttObserver,
    progress: &ProgressBar,
) -> Vec<String> {
    let to = GatewayAddr::from(listener);
    let options = Options::default();
    let (to, options) = (&to, &options);
    stream::iter(conversations)
        .map(|conversation| async move {
            let played = play(conversation, to, Some(observer), options, |_| {}).await;
            progress.inc(1);
            played.err().map(|error| format!("{}: {}", conversation.name(), report(&error)))
        })
        .buffer_unordered(TERMINALS_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// Prints positions until all expected ones have arrived, or no more do; returns their number.
async fn print_positions(
    mut positions: mpsc::Receiver<Position>,
    progress: ProgressBar,
    expected: usize,
) -> io::Result<usize> {
    let mut arrived = 0;
    while arrived < expected {
        // No timeout while terminals are still connecting.
        let patience =
            if progress.position() < progress.length().unwrap_or(0) { Duration::MAX } else { LAST_POSITIONS };
        match tokio::time::timeout(patience.min(Duration::from_secs(60)), positions.recv()).await {
            Ok(Some(position)) => {
                arrived += 1;
                progress.suspend(|| writeln!(io::stdout(), "{position}"))?;
            }
            Ok(None) | Err(_) => break,
        }
    }
    Ok(arrived)
}

fn progress_bar(length: u64) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    match ProgressStyle::with_template("{bar:40} {pos} of {len} connections") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn explain(bound: &Bound, listener: SocketAddr, broker: SocketAddr, dir: &Path) {
    let (host, port) = (broker.ip(), broker.port());
    println!("\nThe gateway goes on serving until Ctrl-C.\n");
    println!("  a device            point a JT/T 808 terminal at {listener}, or replay one:");
    println!(
        "                      polygate replay examples/conversations/jt808/tour.conversation --to tcp://{listener} --mqtt mqtt://{broker}"
    );
    println!("  an MQTT client      mosquitto_sub -h {host} -p {port} -t 'jt808/#' -v");
    println!(
        "  a command           mosquitto_pub -h {host} -p {port} -t jt808/13800138000/command -m '{{\"type\":\"query_position\"}}'"
    );
    if let Some(admin) = bound.admin {
        println!("  metrics             curl http://{admin}/metrics");
    }
    println!("  its configuration   {}", dir.join("polygate.toml").display());
}
