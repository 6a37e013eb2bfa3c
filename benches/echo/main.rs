//! Round trips through the gateway compared with a bare echo server: rate, latency, CPU and memory,
//! measured in one run on one machine, so that the ratios are meaningful although the figures depend on the machine.
//!
//! `cargo bench --bench echo` prints the table; `-- --seconds 2 --connections 1,100` makes it shorter.
//! `-- --live 1000,10000,100000` measures live devices with an instance each; if the limit on descriptors is too low
//! for them, threads have a table of descriptors each. `-- --neighbours` measures the effect of a misbehaving guest on
//! the devices of another one, and `-- --swap 10000` the effect of a hot swap on so many devices.
//! Each server is a process of its own, for its CPU time and memory; the client is this one.

mod client;
mod devices;
mod dtls;
mod identity;
mod live;
mod neighbours;
mod pace;
mod parts;
mod process;
mod server;
mod swap;
mod tables;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mimalloc::MiMalloc;

use client::{Gate, Load, Measured, Transport};
use identity::Identity;
use process::Server;

/// The same allocator as polygate, for all servers alike.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Measures round trips per second, latency, CPU and memory of the gateway compared with a bare echo server.
#[derive(Debug, Parser)]
struct Args {
    /// Duration of each row in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Numbers of connections
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    connections: Vec<usize>,
    /// Bytes of each round trip
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Servers, by prefix of their names; default: all
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measure these numbers of live devices instead of the table
    #[arg(long, value_delimiter = ',')]
    live: Option<Vec<usize>>,
    /// Measure the latency beside misbehaving guests instead of the table; default: all of them
    #[arg(long, value_delimiter = ',', num_args = 0.., value_parser = neighbours::BAD)]
    neighbours: Option<Vec<String>>,
    /// With --neighbours: number of rounds with and without the misbehaving guest
    #[arg(long, default_value_t = 10, requires = "neighbours")]
    rounds: usize,
    /// With --neighbours: pause of a disconnected device of the misbehaving guest before it reconnects, in milliseconds
    #[arg(long, default_value_t = 50, requires = "neighbours")]
    pause_ms: u64,
    /// Measure a hot swap with this number of devices instead of the table
    #[arg(long)]
    swap: Option<usize>,
    /// Passed by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
    /// Run as one of the servers
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    server: Option<Vec<String>>,
}

/// The servers under test, in the order of the table; the first of each transport is the baseline of the others.
const SUBJECTS: [Subject; 11] = [
    Subject { name: "bare tokio echo", kind: Kind::Bare, transport: Transport::Tcp },
    Subject { name: "echo guest", kind: Kind::Guest, transport: Transport::Tcp },
    Subject { name: "echo guest, large", kind: Kind::LargeGuest, transport: Transport::Tcp },
    Subject { name: "gRPC handler", kind: Kind::Grpc, transport: Transport::Tcp },
    Subject { name: "UDP bare tokio", kind: Kind::Bare, transport: Transport::Udp },
    Subject { name: "UDP echo guest", kind: Kind::Guest, transport: Transport::Udp },
    Subject { name: "UDP gRPC handler", kind: Kind::Grpc, transport: Transport::Udp },
    Subject { name: "TLS bare tokio", kind: Kind::Bare, transport: Transport::Tls },
    Subject { name: "TLS echo guest", kind: Kind::Guest, transport: Transport::Tls },
    Subject { name: "DTLS bare openssl", kind: Kind::Bare, transport: Transport::Dtls },
    Subject { name: "DTLS echo guest", kind: Kind::Guest, transport: Transport::Dtls },
];

struct Subject {
    name: &'static str,
    kind: Kind,
    transport: Transport,
}

#[derive(Clone, Copy)]
enum Kind {
    Bare,
    Guest,
    /// The same on the engine for large guests.
    LargeGuest,
    Grpc,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(server) = &args.server {
        server::run(server).await;
        return ExitCode::SUCCESS;
    }
    if let Some(live) = &args.live {
        live::run(live, args.payload_bytes, args.seconds).await;
        return ExitCode::SUCCESS;
    }
    if let Some(bad) = &args.neighbours {
        let course = neighbours::Course {
            rounds: args.rounds,
            span: Duration::from_secs(args.seconds),
            payload_bytes: args.payload_bytes,
            pause: Duration::from_millis(args.pause_ms),
        };
        neighbours::run(bad, course).await;
        return ExitCode::SUCCESS;
    }
    if let Some(devices) = args.swap {
        let room = live::room_for(devices);
        assert!(room >= devices, "{devices} devices need more descriptors than there may be: there is room for {room}");
        swap::run(devices, args.payload_bytes, args.seconds).await;
        return ExitCode::SUCCESS;
    }
    let identity = Identity::new();
    header();
    for &connections in &args.connections {
        let mut bare: Option<(Transport, f64)> = None;
        for subject in &SUBJECTS {
            if !args.only.is_empty() && !args.only.iter().any(|name| subject.name.starts_with(name.as_str())) {
                continue;
            }
            let row = measure(subject, connections, &identity, &args).await;
            let rate = match bare {
                Some((transport, rate)) if transport == subject.transport => rate,
                Some(_) | None => row.measured.rate(),
            };
            bare = Some((subject.transport, rate));
            print(subject.name, connections, &row, rate);
        }
        println!();
    }
    ExitCode::SUCCESS
}

struct Row {
    measured: Measured,
    /// CPU time and memory of the server.
    cpu_us_per_round_trip: f64,
    kib_per_connection: f64,
    opened_per_second: f64,
}

/// One server, started for this row alone, so that no row inherits another's memory.
async fn measure(subject: &Subject, connections: usize, identity: &Identity, args: &Args) -> Row {
    let Subject { kind, transport, .. } = *subject;
    let over: &[&str] = match transport {
        Transport::Tcp => &["tcp"],
        Transport::Udp => &["udp"],
        Transport::Tls => &["tls", identity.dir()],
        Transport::Dtls => &["dtls", identity.dir()],
    };
    let handler = match kind {
        Kind::Grpc => Some(Server::start(&["handler"]).await),
        Kind::Bare | Kind::Guest | Kind::LargeGuest => None,
    };
    let server = match (kind, &handler) {
        (Kind::Bare, _) => Server::start(&[&["bare"], over].concat()).await,
        (Kind::LargeGuest, _) => Server::start(&["large-guest"]).await,
        (_, None) => Server::start(&[&["guest"], over].concat()).await,
        (_, Some(handler)) => {
            let gateway = Server::start(&[&["grpc", &handler.address().to_string()], over].concat()).await;
            handler.tell(&gateway.adapter().to_string()).await;
            gateway
        }
    };
    let (tls, dtls) = (identity.connector(), dtls::devices(identity.dir().as_ref()));
    let gate = Gate { transport, address: server.address(), tls, dtls };
    // The first connection pays for shared state.
    Load::open(&gate, 1, args.payload_bytes).await.round_trips(Duration::from_millis(200)).await;
    let memory_before = server.memory_kib();
    let load = Load::open(&gate, connections, args.payload_bytes).await;
    let load = load.settle().await;
    let kib_per_connection = (server.memory_kib() - memory_before) / connections as f64;

    let cpu_before = server.cpu();
    let (load, measured) = load.round_trips(Duration::from_secs(args.seconds)).await;
    let cpu = server.cpu() - cpu_before;
    drop(load);
    let opened_per_second = client::open_and_close(
        &gate,
        connections.min(100),
        args.payload_bytes,
        Duration::from_secs(args.seconds.div_ceil(2)),
    )
    .await;
    Row {
        cpu_us_per_round_trip: cpu.as_secs_f64() * 1e6 / measured.round_trips() as f64,
        kib_per_connection,
        opened_per_second,
        measured,
    }
}

fn header() {
    println!(
        "{:<18} {:>6} {:>11} {:>7} {:>9} {:>9} {:>9} {:>10} {:>9} {:>10}",
        "server", "conns", "trips/s", "ratio", "p50 us", "p99 us", "p99.9 us", "CPU us", "KiB/conn", "opened/s"
    );
}

fn print(name: &str, connections: usize, row: &Row, bare: f64) {
    println!(
        "{:<18} {:>6} {:>11.0} {:>7.3} {:>9} {:>9} {:>9} {:>10.2} {:>9.1} {:>10.0}",
        name,
        connections,
        row.measured.rate(),
        row.measured.rate() / bare,
        row.measured.percentile_us(50.0),
        row.measured.percentile_us(99.0),
        row.measured.percentile_us(99.9),
        row.cpu_us_per_round_trip,
        row.kib_per_connection,
        row.opened_per_second,
    );
}
