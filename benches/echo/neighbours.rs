//! What the devices of a good guest feel of a bad one beside it in the same gateway.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::devices::{self, Device};
use crate::live::CONCURRENCY;
use crate::pace::{pace, percentile};
use crate::process::Server;

/// The bad guests, in the order of the table; each misbehaves when it is told its name. The first one only echoes it: the
/// row shows what devices cost that come and go.
pub const BAD: [&str; 7] = ["echo", "forever", "trap", "hoard", "babble", "flood", "recurse"];

/// Devices of the good guest, and how often each says something.
const GOOD_DEVICES: usize = 200;
const GOOD_INTERVAL: Duration = Duration::from_millis(50);

/// Devices of the bad guest. Each connects, makes it misbehave, waits until it is cut off or has its word back, and connects
/// again.
const BAD_DEVICES: usize = 4;

/// How long one that was cut off waits.
const BAD_PAUSE: Duration = Duration::from_millis(50);

/// Prints a row for each bad guest. Rounds with it and without it alternate; what is compared are the medians over the
/// rounds. The first row has nobody beside the good guest, and shows what the machine alone does.
pub async fn run(only: &[String], rounds: usize, payload_bytes: usize, seconds: u64) {
    header();
    for bad in [None].into_iter().chain(BAD.map(Some)) {
        if bad.is_some_and(|name| !only.is_empty() && !only.iter().any(|wanted| wanted == name)) {
            continue;
        }
        measure(bad, rounds, payload_bytes, Duration::from_secs(seconds)).await;
    }
}

/// What one kind of round was like, by round.
#[derive(Default)]
struct Rounds {
    p50: Vec<Duration>,
    p99: Vec<Duration>,
    /// Of one core.
    cpu_percent: Vec<f64>,
}

async fn measure(bad: Option<&str>, rounds: usize, payload_bytes: usize, span: Duration) {
    // Where an operator's log would go, a file.
    let log = Stdio::from(tempfile::tempfile().expect("no file for the log"));
    let server = Server::start_with(&["neighbours", bad.unwrap_or(BAD[0])], log).await;
    let [good_address, bad_address] = server.listeners() else { panic!("two listeners") };
    let mut good = devices::open(0..GOOD_DEVICES, &[*good_address], payload_bytes, CONCURRENCY).await;
    let (mut alone, mut beside) = (Rounds::default(), Rounds::default());
    let (tries, mut trying) = (Arc::new(AtomicU64::new(0)), Duration::ZERO);
    for _ in 0..rounds {
        good = round(&server, good, payload_bytes, span, &mut alone).await;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let since = Instant::now();
        if let Some(name) = bad {
            for _ in 0..BAD_DEVICES {
                tasks.spawn(misbehave(*bad_address, name.to_owned(), Arc::clone(&tries), stop.clone()));
            }
        }
        good = round(&server, good, payload_bytes, span, &mut beside).await;
        stop.cancel();
        // The next round begins when the last one of them is cut off.
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a bad device has panicked");
        }
        trying += since.elapsed();
    }
    for device in good {
        device.end().await;
    }
    let tries_per_second = tries.load(Ordering::Relaxed) as f64 / trying.as_secs_f64();
    print(bad.unwrap_or("nobody"), tries_per_second, &mut alone, &mut beside);
}

async fn round(
    server: &Server,
    good: Vec<Device<TcpStream>>,
    payload_bytes: usize,
    span: Duration,
    rounds: &mut Rounds,
) -> Vec<Device<TcpStream>> {
    let (cpu_before, started, stop) = (server.cpu(), Instant::now(), CancellationToken::new());
    let stopping = async {
        tokio::time::sleep(span).await;
        stop.cancel();
    };
    let ((good, answered), ()) = tokio::join!(pace(good, GOOD_INTERVAL, payload_bytes, stop.clone()), stopping);
    let cpu = server.cpu() - cpu_before;
    let mut latencies: Vec<Duration> = answered.iter().map(|answered| answered.latency).collect();
    rounds.p50.push(percentile(&mut latencies, 50));
    rounds.p99.push(percentile(&mut latencies, 99));
    rounds.cpu_percent.push(100.0 * cpu.as_secs_f64() / started.elapsed().as_secs_f64());
    good
}

/// One bad device.
async fn misbehave(address: SocketAddr, word: String, tries: Arc<AtomicU64>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut stream = TcpStream::connect(address).await.expect("cannot connect");
        // A reset at the end: ports that linger in TIME_WAIT would be used up.
        stream.set_zero_linger().expect("cannot set SO_LINGER");
        let mut buffer = vec![0; 64 << 10];
        // However it is cut off, that was the purpose.
        if stream.write_all(word.as_bytes()).await.is_ok() {
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0 && &buffer[..count] != word.as_bytes()) {}
        }
        tries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BAD_PAUSE).await;
    }
}

fn header() {
    println!(
        "{:<10} {:>8} {:>10} {:>10} {:>7} {:>10} {:>10} {:>7} {:>10} {:>10}",
        "beside", "tries/s", "p50 alone", "p50 us", "ratio", "p99 alone", "p99 us", "ratio", "CPU% alone", "CPU%"
    );
}

fn print(name: &str, tries_per_second: f64, alone: &mut Rounds, beside: &mut Rounds) {
    let mut medians = |of: fn(&mut Rounds) -> &mut Vec<Duration>| {
        [&mut *alone, &mut *beside].map(|rounds| percentile(of(rounds), 50).as_micros())
    };
    let [p50_alone, p50] = medians(|rounds| &mut rounds.p50);
    let [p99_alone, p99] = medians(|rounds| &mut rounds.p99);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    println!(
        "{name:<10} {tries_per_second:>8.1} {p50_alone:>10} {p50:>10} {:>7.3} {p99_alone:>10} {p99:>10} {:>7.3} {:>10.1} {:>10.1}",
        p50 as f64 / p50_alone as f64,
        p99 as f64 / p99_alone as f64,
        mean(&alone.cpu_percent),
        mean(&beside.cpu_percent),
    );
}
