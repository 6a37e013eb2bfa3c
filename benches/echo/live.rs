//! Many devices at once, each with an instance of its own in one gateway: what one costs, and what an echo costs among
//! so many.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::process::Server;

/// Addresses that the gateway listens on: 127.0.0.1 and on.
pub const LISTENERS: u8 = 4;

/// Devices of one address of theirs; a system has some 28,000 ports for that, and finds a free one slowly when most
/// are taken.
const DEVICES_PER_ADDRESS: usize = 4_000;

/// Connections that are being opened, and echoes on their way, at a time.
pub const CONCURRENCY: usize = 256;

/// Descriptors that each side needs for other things.
const DESCRIPTORS_ELSE: usize = 500;

/// A device, and the number that it says, so that another one's bytes are noticed.
pub struct Device<S> {
    pub number: u64,
    pub stream: S,
}

/// What was measured of echoes.
pub struct Echoes {
    pub count: usize,
    pub elapsed: Duration,
    pub p50: Duration,
    pub p99: Duration,
}

/// Prints a row for each number of devices, as far as descriptors allow.
pub async fn run(numbers: &[usize], payload_bytes: usize, seconds: u64) {
    let most = numbers.iter().max().copied().unwrap_or(0);
    let room = descriptors(most + DESCRIPTORS_ELSE).saturating_sub(DESCRIPTORS_ELSE);
    header();
    for &devices in numbers {
        if devices > room {
            println!("{devices:>8} need more descriptors than there may be; {room} are measured");
        }
        measure(devices.min(room), payload_bytes, Duration::from_secs(seconds)).await;
    }
}

/// The same with devices in the gateway's process and streams in memory, which need no descriptors. Memory and CPU time
/// are of both sides then.
pub async fn run_in_memory(numbers: &[usize], payload_bytes: usize, seconds: u64) {
    header();
    for &devices in numbers {
        let mut server = Server::start(&["streams"]).await;
        server.ask(&format!("open 1 {payload_bytes}")).await;
        server.ask("close").await;
        let before = Taken::by(&server);

        let opening = Instant::now();
        server.ask(&format!("open {devices} {payload_bytes}")).await;
        let opened_per_second = devices as f64 / opening.elapsed().as_secs_f64();
        let (live, maps) = (Taken::by(&server), server.mappings());

        let cpu_before = server.cpu();
        let answer = server.ask(&format!("echo {seconds} {payload_bytes}")).await;
        let cpu = server.cpu() - cpu_before;
        let figures: Vec<u64> = answer.split(' ').map(|figure| figure.parse().expect("no number")).collect();
        let [count, elapsed, p50, p99] = figures[..] else { panic!("four figures, and not {answer:?}") };
        let echoes = Echoes {
            count: count as usize,
            elapsed: Duration::from_micros(elapsed),
            p50: Duration::from_micros(p50),
            p99: Duration::from_micros(p99),
        };
        server.ask("close").await;
        let left = Taken::by(&server);
        print(devices, maps, opened_per_second, cpu, &echoes, [&before, &live, &left]);
    }
}

async fn measure(count: usize, payload_bytes: usize, span: Duration) {
    let server = Server::start(&["guests"]).await;
    // The first connection pays for what is made once.
    drop(open(&server, 1, payload_bytes).await);
    let before = Taken::by(&server);
    let descriptors_before = server.descriptors();

    let opening = Instant::now();
    let devices = open(&server, count, payload_bytes).await;
    let opened_per_second = count as f64 / opening.elapsed().as_secs_f64();
    let (live, maps) = (Taken::by(&server), server.mappings());

    let cpu_before = server.cpu();
    let (devices, echoes) = echo(devices, payload_bytes, span).await;
    let cpu = server.cpu() - cpu_before;

    drop(devices);
    while server.descriptors() > descriptors_before {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    print(count, maps, opened_per_second, cpu, &echoes, [&before, &live, &Taken::by(&server)]);
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
        echoes.count as f64 / echoes.elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / echoes.count as f64,
        echoes.p50.as_micros(),
        echoes.p99.as_micros(),
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

/// Connects devices; each has had its first bytes back, so its instance lives.
async fn open(server: &Server, count: usize, payload_bytes: usize) -> Vec<Device<TcpStream>> {
    let listeners = server.listeners();
    let devices = futures::stream::iter(0..count).map(|number| async move {
        let mut device = connect(number, listeners[number % listeners.len()]).await?;
        device.echo(&mut vec![0; payload_bytes]).await?;
        std::io::Result::Ok(device)
    });
    devices.buffer_unordered(CONCURRENCY).try_collect().await.expect("a device failed")
}

async fn connect(number: usize, to: SocketAddr) -> std::io::Result<Device<TcpStream>> {
    let third = u8::try_from(1 + number / DEVICES_PER_ADDRESS).expect("fewer devices");
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(Ipv4Addr::new(127, 0, third, 1), 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    // A reset at the end: ports that linger in TIME_WAIT would be missing in the next row.
    stream.set_zero_linger()?;
    Ok(Device { number: number as u64, stream })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Device<S> {
    /// Says its number, over and over, and waits for the same to come back.
    pub async fn echo(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        let said: Vec<u8> = self.number.to_be_bytes().into_iter().cycle().take(buffer.len()).collect();
        self.stream.write_all(&said).await?;
        self.stream.read_exact(buffer).await?;
        assert!(*buffer == *said, "device {} got the bytes of another", self.number);
        Ok(())
    }
}

/// Echoes of all devices in turn, some at a time, at least one of each.
pub async fn echo<S>(devices: Vec<Device<S>>, payload_bytes: usize, span: Duration) -> (Vec<Device<S>>, Echoes)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let started = Instant::now();
    let mut groups: Vec<Vec<Device<S>>> = (0..CONCURRENCY.min(devices.len())).map(|_| Vec::new()).collect();
    let count = groups.len();
    for (index, device) in devices.into_iter().enumerate() {
        groups[index % count].push(device);
    }
    let mut tasks = JoinSet::new();
    for mut group in groups {
        tasks.spawn(async move {
            let (mut latencies, mut buffer) = (Vec::new(), vec![0; payload_bytes]);
            while latencies.is_empty() || started.elapsed() < span {
                for device in &mut group {
                    let before = Instant::now();
                    device.echo(&mut buffer).await.expect("a device failed");
                    latencies.push(before.elapsed());
                }
            }
            (group, latencies)
        });
    }
    let (mut devices, mut latencies) = (Vec::new(), Vec::new());
    while let Some(group) = tasks.join_next().await {
        let (group, some) = group.expect("a device has panicked");
        devices.extend(group);
        latencies.extend(some);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    (devices, Echoes { count: latencies.len(), elapsed, p50: percentile(50), p99: percentile(99) })
}

/// Raises the limit of this process and of the servers it starts; gives what it is then.
fn descriptors(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = Some(wanted as u64);
    // Beyond the hard limit only the administrator may go.
    for limit in [Rlimit { current: wanted, maximum: maximum.max(wanted) }, Rlimit { current: maximum, maximum }] {
        if current < wanted && setrlimit(Resource::Nofile, limit).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| current as usize)
}
