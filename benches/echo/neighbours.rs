//! Noisy-neighbour benchmark: the effect of a misbehaving guest on the devices of a good one in the same gateway.

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

/// The misbehaving guests, in the order of the table; each misbehaves when it receives its name. The first one only
/// echoes it: the baseline of devices that connect and disconnect.
pub const BAD: [&str; 7] = ["echo", "forever", "trap", "hoard", "babble", "flood", "recurse"];

/// Devices of the good guest, and their interval.
const GOOD_DEVICES: usize = 200;
const GOOD_INTERVAL: Duration = Duration::from_millis(50);

/// Devices of the misbehaving guest. Each connects, triggers it, waits until it is disconnected or has the echo,
/// pauses, and reconnects. Their starts are spread over the pause: simultaneous connects are not measured here.
const BAD_DEVICES: u32 = 4;

/// The parameters of a measurement.
#[derive(Clone, Copy)]
pub struct Course {
    /// Rounds with and without the misbehaving guest.
    pub rounds: usize,
    /// The duration of a round.
    pub span: Duration,
    pub payload_bytes: usize,
    /// The pause of a disconnected device.
    pub pause: Duration,
}

/// Prints a row for each misbehaving guest. Rounds with and without it alternate; the medians over the rounds are
/// compared. The first row has no second guest, and shows the noise of the machine.
pub async fn run(only: &[String], course: Course) {
    header();
    for bad in [None].into_iter().chain(BAD.map(Some)) {
        if bad.is_some_and(|name| !only.is_empty() && !only.iter().any(|wanted| wanted == name)) {
            continue;
        }
        measure(bad, course).await;
    }
}

/// The results of one kind of round, by round.
#[derive(Default)]
struct Rounds {
    p50: Vec<Duration>,
    p99: Vec<Duration>,
    /// Of one core.
    cpu_percent: Vec<f64>,
    /// CPU time of the threads that serve the good devices.
    serving: Duration,
}

async fn measure(bad: Option<&str>, course: Course) {
    // The log goes to a file, as in operation.
    let log = Stdio::from(tempfile::tempfile().expect("no file for the log"));
    let server = Server::start_with(&["neighbours", bad.unwrap_or(BAD[0])], log).await;
    let [good_address, bad_address] = server.listeners() else { panic!("two listeners") };
    let mut good = devices::open(0..GOOD_DEVICES, &[*good_address], course.payload_bytes, CONCURRENCY).await;
    let (mut alone, mut beside) = (Rounds::default(), Rounds::default());
    let (tries, mut trying) = (Arc::new(AtomicU64::new(0)), Duration::ZERO);
    for _ in 0..course.rounds {
        good = round(&server, good, course, &mut alone).await;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let since = Instant::now();
        if let Some(name) = bad {
            for number in 0..BAD_DEVICES {
                let first = course.pause * number / BAD_DEVICES;
                let device = Bad { address: *bad_address, word: name.to_owned(), first, pause: course.pause };
                tasks.spawn(device.misbehave(Arc::clone(&tries), stop.clone()));
            }
        }
        good = round(&server, good, course, &mut beside).await;
        stop.cancel();
        // The next round begins when the last one of them is disconnected.
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a bad device has panicked");
        }
        trying += since.elapsed();
    }
    for device in good {
        device.end().await;
    }
    let tries = tries.load(Ordering::Relaxed);
    print(bad.unwrap_or("none"), tries, trying, &mut alone, &mut beside);
}

async fn round(
    server: &Server,
    good: Vec<Device<TcpStream>>,
    course: Course,
    rounds: &mut Rounds,
) -> Vec<Device<TcpStream>> {
    let Course { span, payload_bytes, .. } = course;
    let (before, started, stop) = (server.cpu_times(), Instant::now(), CancellationToken::new());
    let stopping = async {
        tokio::time::sleep(span).await;
        stop.cancel();
    };
    let ((good, answered), ()) = tokio::join!(pace(good, GOOD_INTERVAL, payload_bytes, stop.clone()), stopping);
    let cpu = server.cpu_times().since(before);
    let mut latencies: Vec<Duration> = answered.iter().map(|answered| answered.latency).collect();
    rounds.p50.push(percentile(&mut latencies, 50));
    rounds.p99.push(percentile(&mut latencies, 99));
    rounds.cpu_percent.push(100.0 * (cpu.serving + cpu.long).as_secs_f64() / started.elapsed().as_secs_f64());
    rounds.serving += cpu.serving;
    good
}

/// One device of the misbehaving guest.
struct Bad {
    address: SocketAddr,
    word: String,
    /// Its start.
    first: Duration,
    pause: Duration,
}

impl Bad {
    async fn misbehave(self, tries: Arc<AtomicU64>, stop: CancellationToken) {
        let Self { address, word, first, pause } = self;
        tokio::time::sleep(first).await;
        while !stop.is_cancelled() {
            let mut stream = TcpStream::connect(address).await.expect("cannot connect");
            // Closes with a reset: ports that linger in TIME_WAIT would be used up.
            stream.set_zero_linger().expect("cannot set SO_LINGER");
            let mut buffer = vec![0; 64 << 10];
            // Any error is the expected disconnect.
            if stream.write_all(word.as_bytes()).await.is_ok() {
                while stream.read(&mut buffer).await.is_ok_and(|count| count > 0 && &buffer[..count] != word.as_bytes())
                {
                }
            }
            tries.fetch_add(1, Ordering::Relaxed);
            // The round's end does not wait for a long pause.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

fn header() {
    println!(
        "{:<10} {:>8} {:>8} {:>10} {:>10} {:>7} {:>10} {:>10} {:>7} {:>10} {:>10}",
        "beside",
        "tries/s",
        "us/try",
        "p50 alone",
        "p50 us",
        "ratio",
        "p99 alone",
        "p99 us",
        "ratio",
        "CPU% alone",
        "CPU%"
    );
}

fn print(name: &str, tries: u64, trying: Duration, alone: &mut Rounds, beside: &mut Rounds) {
    let tries_per_second = tries as f64 / trying.as_secs_f64();
    // CPU time of the serving threads for each try; that of the good devices is the same with and without.
    let serving_us = (beside.serving.as_secs_f64() - alone.serving.as_secs_f64()) * 1e6 / tries.max(1) as f64;
    let mut medians = |of: fn(&mut Rounds) -> &mut Vec<Duration>| {
        [&mut *alone, &mut *beside].map(|rounds| percentile(of(rounds), 50).as_micros())
    };
    let [p50_alone, p50] = medians(|rounds| &mut rounds.p50);
    let [p99_alone, p99] = medians(|rounds| &mut rounds.p99);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    println!(
        "{name:<10} {tries_per_second:>8.1} {serving_us:>8.0} {p50_alone:>10} {p50:>10} {:>7.3} {p99_alone:>10} {p99:>10} {:>7.3} {:>10.1} {:>10.1}",
        p50 as f64 / p50_alone as f64,
        p99 as f64 / p99_alone as f64,
        mean(&alone.cpu_percent),
        mean(&beside.cpu_percent),
    );
}
