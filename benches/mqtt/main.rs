//! The embedded broker compared with mosquitto: CPU of the server process per message, memory of an idle client, and the
//! time that the broker takes to restore its state.
//!
//! `cargo bench --bench mqtt` prints the tables; it needs the program `mosquitto`. The two servers take turns in one run on
//! one machine, so that the ratios are meaningful although the figures depend on the machine. Each server is a process of
//! its own, and its CPU time is that of the kernel's accounts; the load comes from this process and is not counted.
//! `-- --rounds 1` makes it shorter.

mod load;
mod server;

use std::time::Duration;

use clap::Parser;

use load::Case;
use server::{Kind, Server};

/// Measures CPU per message and memory of the embedded broker and of mosquitto.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each case with each server; the median is shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Idle clients
    #[arg(long, default_value_t = 8_000)]
    idle: usize,
    /// Retained messages to restore
    #[arg(long, default_value_t = 100_000)]
    retained: usize,
    /// Sessions to restore
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Passed by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    server::raise_descriptor_limit();
    println!("CPU of the server process per delivered message, in microseconds (median of {} rounds)\n", args.rounds);
    println!("{:<44} {:>10} {:>10} {:>7}", "", "polygate", "mosquitto", "ratio");
    for case in Case::ALL {
        let mut measured = [Vec::new(), Vec::new()];
        for _ in 0..args.rounds {
            for (figures, kind) in measured.iter_mut().zip(Kind::BOTH) {
                let server = Server::start(kind).await;
                figures.push(case.run(&server).await);
                server.stop().await;
            }
        }
        let [ours, theirs] = measured.map(median);
        println!("{:<44} {ours:>10.2} {theirs:>10.2} {:>7.2}", case.name(), ours / theirs);
    }

    println!("\nMemory of an idle client with one subscription, in KiB ({} clients)\n", args.idle);
    for kind in Kind::BOTH {
        let server = Server::start(kind).await;
        println!("{:<12} {:>8.2}", kind.name(), load::idle_memory(&server, args.idle).await / 1024.0);
        server.stop().await;
    }

    println!("\nRestoring {} retained messages and {} sessions\n", args.retained, args.sessions);
    let server = Server::start(Kind::Polygate).await;
    load::fill(&server, args.retained, args.sessions).await;
    let dir = server.stop().await;
    let (server, restored) = Server::restart(dir).await;
    println!("after SIGTERM: {restored}");
    let (server, restored) = Server::restart(server.kill().await).await;
    println!("after SIGKILL: {restored}");
    server.stop().await;
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Time within which each step of a measurement must be done.
const PATIENCE: Duration = Duration::from_secs(120);
