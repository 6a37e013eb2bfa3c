//! Many live devices, each with an instance of its own in one gateway: the memory of one, and the cost of an echo among
//! so many.

use std::time::{Duration, Instant};

use futures::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::devices::{self, Echoes};
use crate::process::Server;

/// Listen addresses of the gateway: from 127.0.0.1 on.
pub const LISTENERS: u8 = 4;

/// Concurrency of connects and echoes.
pub const CONCURRENCY: usize = 256;

/// Descriptors that each side needs for other purposes.
const DESCRIPTORS_ELSE: usize = 500;

/// Prints a row for each number of devices. If one descriptor table is too small for the largest number, the gateway
/// has threads with a table each, for all rows, and the devices are in as many processes.
pub async fn run(numbers: &[usize], payload_bytes: usize, seconds: u64) {
    let most = numbers.iter().max().copied().unwrap_or(0);
    let room = room_for(most);
    let tables = most.div_ceil(room);
    if tables > 1 {
        println!("a table of descriptors holds {room} connections: the gateway has {tables} threads with one each");
    }
    header();
    for &devices in numbers {
        if tables > 1 {
            measure_in_tables(devices, tables, payload_bytes, seconds).await;
        } else {
            measure(devices, payload_bytes, Duration::from_secs(seconds)).await;
        }
    }
}

async fn measure(count: usize, payload_bytes: usize, span: Duration) {
    let server = Server::start(&["guests"]).await;
    let listeners = server.listeners();
    // The first connection pays for shared state.
    drop(devices::open(0..1, listeners, payload_bytes, 1).await);
    let before = Taken::by(&server);
    let descriptors_before = server.descriptors();

    let opening = Instant::now();
    let devices = devices::open(0..count, listeners, payload_bytes, CONCURRENCY).await;
    let opened_per_second = count as f64 / opening.elapsed().as_secs_f64();
    let (live, maps) = (Taken::by(&server), server.mappings());

    let cpu_before = server.cpu();
    let (devices, echoes) = devices::echo(devices, payload_bytes, span, CONCURRENCY).await;
    let cpu = server.cpu() - cpu_before;

    drop(devices);
    while server.descriptors() > descriptors_before {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    print(count, maps, opened_per_second, cpu, &echoes, [&before, &live, &Taken::by(&server)]);
}

async fn measure_in_tables(count: usize, tables: usize, payload_bytes: usize, seconds: u64) {
    let mut server = Server::start(&["tables", &tables.to_string()]).await;
    let mut clients = Vec::with_capacity(tables);
    for listener in server.addresses() {
        let with_full_burst = CONCURRENCY.div_ceil(tables);
        clients.push(Server::start(&["devices", &listener.to_string(), &with_full_burst.to_string()]).await);
    }
    // The first connection of each thread pays for shared state.
    for client in &mut clients {
        client.ask(&format!("open 0 1 {payload_bytes}")).await;
        client.ask("close").await;
    }
    until_all_have_ended(&mut server).await;
    let before = Taken::by(&server);

    let opening = Instant::now();
    let each = count.div_ceil(tables);
    join_all(clients.iter_mut().enumerate().map(async |(index, client)| {
        let first = (index * each).min(count);
        let own = each.min(count - first);
        client.ask(&format!("open {first} {own} {payload_bytes}")).await
    }))
    .await;
    let opened_per_second = count as f64 / opening.elapsed().as_secs_f64();
    let (live, maps) = (Taken::by(&server), server.mappings());

    let cpu_before = server.cpu();
    let answers =
        join_all(clients.iter_mut().map(async |client| client.ask(&format!("echo {seconds} {payload_bytes}")).await));
    let echoes = Echoes::together(answers.await.iter().map(|line| Echoes::from_line(line)));
    let cpu = server.cpu() - cpu_before;

    join_all(clients.iter_mut().map(async |client| client.ask("close").await)).await;
    until_all_have_ended(&mut server).await;
    print(count, maps, opened_per_second, cpu, &echoes, [&before, &live, &Taken::by(&server)]);
}

async fn until_all_have_ended(server: &mut Server) {
    while server.ask("live").await != "0" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn header() {
    println!(
        "{:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9} {:>9}",
        "devices",
        "maps",
        "KiB each",
        "resident",
        "tables",
        "left",
        "opened/s",
        "trips/s",
        "CPU us",
        "p50 us",
        "p99 us"
    );
}

fn print(
    devices: usize,
    maps: usize,
    opened_per_second: f64,
    cpu: Duration,
    echoes: &Echoes,
    [before, live, left]: [&Taken; 3],
) {
    let each = |kib: f64, without: f64| (kib - without) / devices as f64;
    println!(
        "{devices:>8} {maps:>8} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {opened_per_second:>9.0} {:>11.0} {:>9.2} {:>9} {:>9}",
        each(live.resident_kib + live.tables_kib, before.resident_kib + before.tables_kib),
        each(live.resident_kib, before.resident_kib),
        each(live.tables_kib, before.tables_kib),
        each(left.resident_kib + left.tables_kib, before.resident_kib + before.tables_kib),
        echoes.count() as f64 / echoes.elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / echoes.count() as f64,
        echoes.percentile_us(50.0),
        echoes.percentile_us(99.0),
    );
}

/// Memory of the gateway's process.
struct Taken {
    resident_kib: f64,
    tables_kib: f64,
}

impl Taken {
    fn by(server: &Server) -> Self {
        Self { resident_kib: server.memory_kib(), tables_kib: server.page_tables_kib() }
    }
}

/// The number of connections that fit one descriptor table, up to the wanted one. Raises the limit of this process
/// and of its child processes as far as needed and permitted.
pub fn room_for(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = Some((wanted + DESCRIPTORS_ELSE) as u64);
    // Only a privileged process may exceed the hard limit.
    for limit in [Rlimit { current: needed, maximum: maximum.max(needed) }, Rlimit { current: maximum, maximum }] {
        if current < needed && setrlimit(Resource::Nofile, limit).is_ok() {
            break;
        }
    }
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| current as usize);
    descriptors.saturating_sub(DESCRIPTORS_ELSE).clamp(1, wanted.max(1))
}
