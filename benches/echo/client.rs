//! Load clients: each sends, waits for the echo, and sends again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openssl::ssl::SslContext;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::dtls;
use crate::identity::HOST;

/// The transport of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    Tls,
    Dtls,
}

/// The address and transport of a server.
#[derive(Clone)]
pub struct Gate {
    pub transport: Transport,
    pub address: SocketAddr,
    /// TLS configuration of a device.
    pub tls: TlsConnector,
    /// DTLS configuration of a device.
    pub dtls: SslContext,
}

/// After this long without an answer over UDP or DTLS, a datagram counts as lost and is sent again: hundreds of times
/// the latency of any row. Some are lost when all devices send at once and the kernel's buffer is small.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// A device's socket.
enum Device {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Tls(Box<TlsStream<TcpStream>>),
    Dtls(dtls::Device),
}

impl Device {
    async fn connect(Gate { transport, address, tls, dtls }: &Gate) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp(connect(*address).await),
            Transport::Tls => {
                let host = HOST.try_into().expect("a name");
                Self::Tls(Box::new(tls.connect(host, connect(*address).await).await.expect("the handshake failed")))
            }
            Transport::Udp => Self::Udp(datagrams(*address).await),
            Transport::Dtls => Self::Dtls(dtls::Device::connect(datagrams(*address).await, dtls).await),
        }
    }

    async fn round_trip(&mut self, payload: &[u8]) {
        let mut back = [0; 64 * 1024];
        let back = &mut back[..payload.len()];
        match self {
            Self::Tcp(stream) => {
                stream.write_all(payload).await.expect("cannot send");
                stream.read_exact(back).await.expect("the bytes did not come back");
            }
            Self::Tls(stream) => {
                stream.write_all(payload).await.expect("cannot send");
                stream.flush().await.expect("cannot send");
                stream.read_exact(back).await.expect("the bytes did not come back");
            }
            Self::Udp(socket) => loop {
                socket.send(payload).await.expect("cannot send");
                if let Ok(received) = tokio::time::timeout(LOST_AFTER, socket.recv(back)).await {
                    assert_eq!(received.expect("cannot receive"), payload.len());
                    break;
                }
            },
            Self::Dtls(device) => loop {
                device.send(payload).await;
                if let Ok(received) = tokio::time::timeout(LOST_AFTER, device.receive(back)).await {
                    assert_eq!(received, payload.len());
                    break;
                }
            },
        }
        debug_assert_eq!(back, payload);
    }

    /// Closes without TIME_WAIT and without a session at the server.
    fn reset(self) {
        match self {
            // Ports that linger in TIME_WAIT would be used up within seconds.
            Self::Tcp(stream) => stream.set_zero_linger().expect("cannot set SO_LINGER"),
            Self::Tls(stream) => stream.get_ref().0.set_zero_linger().expect("cannot set SO_LINGER"),
            Self::Udp(_) => {}
            Self::Dtls(device) => device.end(),
        }
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.expect("cannot connect");
    stream.set_nodelay(true).expect("cannot set TCP_NODELAY");
    stream
}

async fn datagrams(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("cannot bind");
    socket.connect(address).await.expect("cannot connect");
    socket
}

/// Open connections.
pub struct Load {
    devices: Vec<Device>,
    payload: Arc<[u8]>,
}

/// The measurement of the devices.
pub struct Measured {
    /// Nanoseconds of each round trip, sorted.
    latencies_ns: Vec<u32>,
    elapsed: Duration,
}

impl Measured {
    pub fn round_trips(&self) -> u64 {
        self.latencies_ns.len() as u64
    }

    /// Per second.
    pub fn rate(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.elapsed.as_secs_f64()
    }

    pub fn percentile_us(&self, percent: f64) -> u32 {
        let last = self.latencies_ns.len().saturating_sub(1);
        let index = (last as f64 * percent / 100.0).round() as usize;
        self.latencies_ns.get(index).map_or(0, |nanoseconds| nanoseconds / 1000)
    }
}

impl Load {
    pub async fn open(gate: &Gate, connections: usize, payload_bytes: usize) -> Self {
        let payload: Arc<[u8]> = (0..payload_bytes).map(|byte| byte as u8).collect();
        let mut devices = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut device = Device::connect(gate).await;
            device.round_trip(&payload).await;
            devices.push(device);
        }
        Self { devices, payload }
    }

    /// Waits until the server is idle after its last answer.
    pub async fn settle(self) -> Self {
        tokio::time::sleep(Duration::from_millis(500)).await;
        self
    }

    /// All devices concurrently, each one round trip after another.
    pub async fn round_trips(self, span: Duration) -> (Self, Measured) {
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for mut device in self.devices {
            let payload = Arc::clone(&self.payload);
            tasks.spawn(async move {
                let mut latencies_ns = Vec::new();
                let mut before = Instant::now();
                while before.duration_since(started) < span {
                    device.round_trip(&payload).await;
                    let after = Instant::now();
                    latencies_ns.push(u32::try_from(after.duration_since(before).as_nanos()).unwrap_or(u32::MAX));
                    before = after;
                }
                (device, latencies_ns)
            });
        }
        let (mut devices, mut latencies_ns) = (Vec::new(), Vec::new());
        while let Some(task) = tasks.join_next().await {
            let (device, latencies) = task.expect("a device has panicked");
            devices.push(device);
            latencies_ns.extend(latencies);
        }
        let elapsed = started.elapsed();
        latencies_ns.sort_unstable();
        (Self { devices, payload: self.payload }, Measured { latencies_ns, elapsed })
    }
}

/// Devices that connect, make one round trip and close; returns their number per second.
pub async fn open_and_close(gate: &Gate, devices: usize, payload_bytes: usize, span: Duration) -> f64 {
    let payload: Arc<[u8]> = vec![7; payload_bytes].into();
    let count = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..devices {
        let (gate, payload, count) = (gate.clone(), Arc::clone(&payload), Arc::clone(&count));
        tasks.spawn(async move {
            while started.elapsed() < span {
                let mut device = Device::connect(&gate).await;
                device.round_trip(&payload).await;
                device.reset();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tasks.join_all().await;
    count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}
