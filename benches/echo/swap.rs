//! Hot swap with many live devices: the latency of each during the swap, and the time until the old version is freed.

use std::time::{Duration, Instant};

use polygate::testing::config;
use polygate::testing::dispatch::{ConnectionMigrator, OldConnections, Plan};
use polygate::testing::drain::Drain;
use polygate::testing::exproto::service::Adapter;
use polygate::testing::listener::Listener;
use polygate::testing::serve::{ListenerShutdown, serve as accept};
use tokio_util::sync::CancellationToken;

use crate::devices::{self, lines};
use crate::live::CONCURRENCY;
use crate::pace::{Answered, pace, percentile};
use crate::parts::Parts;
use crate::process::Server;

/// Swaps from a guest to another version of it, one after another.
const GUEST_SWAPS: usize = 3;

/// The interval of each device.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same with a gRPC server, which takes many times the CPU time.
const GRPC_INTERVAL: Duration = Duration::from_secs(5);

/// Timeout until the old version is freed.
const GONE_MAX: Duration = Duration::from_secs(60);

/// Prints a row for each swap: the latencies in so many seconds before it, and during it.
pub async fn run(count: usize, payload_bytes: usize, seconds: u64) {
    header();
    let mut server = Server::start(&["swap"]).await;
    let guests = vec![("guest to guest", "guest".to_owned()); GUEST_SWAPS];
    measure(&mut server, &guests, INTERVAL, count, payload_bytes, seconds).await;

    let mut server = Server::start(&["swap"]).await;
    let handler = Server::start(&["handler"]).await;
    handler.tell(&server.adapter().to_string()).await;
    let grpc = [("guest to gRPC", format!("grpc {}", handler.address()))];
    measure(&mut server, &grpc, GRPC_INTERVAL, count, payload_bytes, seconds).await;
}

async fn measure(
    server: &mut Server,
    swaps: &[(&str, String)],
    interval: Duration,
    count: usize,
    payload_bytes: usize,
    seconds: u64,
) {
    let devices = devices::open(0..count, server.listeners(), payload_bytes, CONCURRENCY).await;
    let stop = CancellationToken::new();
    let pacing = tokio::spawn(pace(devices, interval, payload_bytes, stop.clone()));
    let mut swapped = Vec::with_capacity(swaps.len());
    for (name, request) in swaps {
        let before = Instant::now();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let begun = Instant::now();
        let answer = server.ask(request).await;
        swapped.push((name, answer, before, begun, Instant::now()));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.cancel();
    let (devices, answered) = pacing.await.expect("the devices have panicked");
    for (name, answer, before, begun, ended) in swapped {
        let within = |from: Instant, to: Instant| {
            let in_progress = |answer: &&Answered| answer.due < to && answer.due + answer.latency >= from;
            answered.iter().filter(in_progress).map(|answer| answer.latency).collect::<Vec<_>>()
        };
        print(name, count, &answer, within(before, begun), within(begun, ended));
    }
    let open = devices.len();
    for device in devices {
        device.end().await;
    }
    println!("{open} sockets were open at the end, and {} answers had come, each once", answered.len());
}

fn header() {
    println!(
        "{:<15} {:>8} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>11}",
        "swap",
        "devices",
        "moved",
        "pinned",
        "moved ms",
        "gone ms",
        "p99 quiet",
        "p99 us",
        "max quiet",
        "max us",
        "max ratio"
    );
}

fn print(name: &str, devices: usize, answer: &str, mut quiet: Vec<Duration>, mut swapping: Vec<Duration>) {
    let figures: Vec<u64> = answer.split(' ').map(|figure| figure.parse().expect("no number")).collect();
    let [moved, pinned, moved_ms, gone_ms] = figures[..] else { panic!("four figures, and not {answer:?}") };
    let [p99_quiet, max_quiet] = [99, 100].map(|percent| percentile(&mut quiet, percent).as_micros());
    let [p99, max] = [99, 100].map(|percent| percentile(&mut swapping, percent).as_micros());
    println!(
        "{name:<15} {devices:>8} {moved:>7} {pinned:>7} {moved_ms:>9} {gone_ms:>9} {p99_quiet:>9} {p99:>9} {max_quiet:>10} {max:>10} {:>11.2}",
        max as f64 / max_quiet as f64
    );
}

/// The gateway: swaps to the handler in each line of stdin, and prints the numbers of moved and pinned connections, and
/// the milliseconds until all had moved and until the old version was freed.
pub async fn serve(parts: Parts, handler: impl Fn(&str) -> config::Handler) {
    let drain = Drain::new();
    let adapter = Adapter::new(parts.table.clone(), parts.pubsub.clone(), parts.telemetry.clone());
    for options in &parts.listeners {
        let metrics = parts.telemetry.listener(&options.socket.name);
        let socket = Listener::bind(&options.socket, None, metrics, &crate::parts::queued()).expect("cannot bind");
        print!("{} ", socket.local_addr());
        tokio::spawn(accept(socket, parts.connections(options), drain.clone(), ListenerShutdown::default()));
    }
    println!("{}", adapter.serve(&parts.adapter, drain).await.expect("no adapter"));

    let migrator = ConnectionMigrator::new(parts.table.clone());
    let health = parts.telemetry.health(parts.versions.name());
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let number = parts.versions.active().number() + 1;
        let active = parts.version(number, handler(&line)).await;
        let (moved, pinned) = (health.moved.get(), health.pinned.get());
        let started = Instant::now();
        parts.versions.follow(Plan { active, others: OldConnections::Move, trial: None });
        migrator.reconcile(&parts.versions).await;
        let reviewed = started.elapsed();
        while parts.versions_loaded() > 1 && started.elapsed() < GONE_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (moved, pinned) = (health.moved.get() - moved, health.pinned.get() - pinned);
        println!("{moved} {pinned} {} {}", reviewed.as_millis(), started.elapsed().as_millis());
    }
}
