//! Device process: performs the requests on its stdin.

use std::io::{self, BufRead};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Devices for each source address; a system has some 28,000 ports for each, and finds a free one slowly when most
/// are taken.
const DEVICES_PER_ADDRESS: usize = 4_000;

/// A device, and the number that it sends, to detect the bytes of another one.
pub struct Device<S> {
    pub number: u64,
    pub stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Device<S> {
    /// Sends its number repeatedly, and waits for the echo.
    pub async fn echo(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let said: Vec<u8> = self.number.to_be_bytes().into_iter().cycle().take(buffer.len()).collect();
        self.stream.write_all(&said).await?;
        self.stream.read_exact(buffer).await?;
        assert!(*buffer == *said, "device {} got the bytes of another", self.number);
        Ok(())
    }
}

/// Connects devices with this concurrency; each has received its first echo, so its instance is live.
pub async fn open(
    numbers: Range<usize>,
    listeners: &[SocketAddr],
    payload_bytes: usize,
    with_full_burst: usize,
) -> Vec<Device<TcpStream>> {
    let devices = futures::stream::iter(numbers).map(|number| async move {
        let mut device = connect(number, listeners[number % listeners.len()]).await?;
        device.echo(&mut vec![0; payload_bytes]).await?;
        io::Result::Ok(device)
    });
    devices.buffer_unordered(with_full_burst).try_collect().await.expect("a device failed")
}

async fn connect(number: usize, to: SocketAddr) -> io::Result<Device<TcpStream>> {
    let third = u8::try_from(1 + number / DEVICES_PER_ADDRESS).expect("fewer devices");
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(Ipv4Addr::new(127, 0, third, 1), 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    // Closes with a reset: ports that linger in TIME_WAIT would be missing in the next row.
    stream.set_zero_linger()?;
    Ok(Device { number: number as u64, stream })
}

/// Measured echoes.
pub struct Echoes {
    pub elapsed: Duration,
    latencies_us: Histogram<u64>,
}

impl Echoes {
    fn none() -> Self {
        Self { elapsed: Duration::ZERO, latencies_us: Histogram::new(3).expect("three digits are possible") }
    }

    pub fn count(&self) -> u64 {
        self.latencies_us.len()
    }

    pub fn percentile_us(&self, percent: f64) -> u64 {
        self.latencies_us.value_at_percentile(percent)
    }

    /// The sum over several processes that began at the same time.
    pub fn together(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::none(), |mut sum, some| {
            sum.elapsed = sum.elapsed.max(some.elapsed);
            sum.latencies_us.add(some.latencies_us).expect("the same range");
            sum
        })
    }

    /// As one line: the duration in microseconds, and the number of echoes of each latency.
    fn to_line(&self) -> String {
        let latencies = self.latencies_us.iter_recorded();
        let latencies = latencies.map(|step| format!(" {}:{}", step.value_iterated_to(), step.count_at_value()));
        format!("{}{}", self.elapsed.as_micros(), latencies.collect::<String>())
    }

    pub fn from_line(line: &str) -> Self {
        let number = |text: &str| text.parse::<u64>().expect("no number");
        let mut words = line.split(' ');
        let mut echoes = Self::none();
        echoes.elapsed = Duration::from_micros(number(words.next().expect("a time")));
        for word in words {
            let (value, count) = word.split_once(':').expect("a latency and how often");
            echoes.latencies_us.record_n(number(value), number(count)).expect("it grows");
        }
        echoes
    }
}

/// Echoes of all devices in turn with this concurrency, at least one of each.
pub async fn echo<S>(
    devices: Vec<Device<S>>,
    payload_bytes: usize,
    span: Duration,
    with_full_burst: usize,
) -> (Vec<Device<S>>, Echoes)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let started = Instant::now();
    let mut groups: Vec<Vec<Device<S>>> = (0..with_full_burst.min(devices.len())).map(|_| Vec::new()).collect();
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
    let (mut devices, mut echoes) = (Vec::new(), Echoes::none());
    while let Some(group) = tasks.join_next().await {
        let (group, latencies) = group.expect("a device has panicked");
        devices.extend(group);
        for latency in latencies {
            echoes.latencies_us.record(latency.as_micros() as u64).expect("it grows");
        }
    }
    echoes.elapsed = started.elapsed();
    (devices, echoes)
}

/// Performs the requests on stdin, one a line: `open FIRST COUNT BYTES` for devices and their first echo, `echo
/// SECONDS BYTES`, and `close`.
pub async fn obey<S>(
    with_full_burst: usize,
    mut open: impl AsyncFnMut(Range<usize>, usize) -> Vec<Device<S>>,
    mut closed: impl AsyncFnMut(),
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    println!();
    let (mut devices, mut lines) = (Vec::new(), lines());
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<usize>().expect("no number");
        match words[0] {
            "open" => {
                devices = open(number(1)..number(1) + number(2), number(3)).await;
                println!("opened");
            }
            "echo" => {
                let span = Duration::from_secs(number(1) as u64);
                let (back, echoes) = echo(devices, number(2), span, with_full_burst).await;
                devices = back;
                println!("{}", echoes.to_line());
            }
            "close" => {
                devices.clear();
                closed().await;
                println!("closed");
            }
            _ => panic!("no such request: {line:?}"),
        }
    }
}

/// The lines of stdin.
pub fn lines() -> mpsc::Receiver<String> {
    let (line_tx, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if line_tx.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
