//! Devices with a fixed interval (open-loop load), whether or not the gateway keeps up.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::devices::Device;

/// One echoed message.
#[derive(Clone, Copy)]
pub struct Answered {
    /// Its due time.
    pub due: Instant,
    /// The latency from then on. A device's own timer is late by up to a millisecond; without another cause, that is
    /// left out.
    pub latency: Duration,
}

/// Each device sends once in the interval, spread evenly over it, until it is stopped. Messages that become due while a
/// device waits for an answer are sent after it, and their latency counts from their due time.
pub async fn pace(
    devices: Vec<Device<TcpStream>>,
    interval: Duration,
    payload_bytes: usize,
    stop: CancellationToken,
) -> (Vec<Device<TcpStream>>, Vec<Answered>) {
    let (started, count) = (Instant::now(), devices.len() as u32);
    let mut tasks = JoinSet::new();
    for (mut device, position) in devices.into_iter().zip(0..) {
        let stop = stop.clone();
        tasks.spawn(async move {
            let (mut answered, mut buffer) = (Vec::new(), vec![0; payload_bytes]);
            let mut due = started + interval * position / count;
            let mut free = started;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return (device, answered),
                    () = tokio::time::sleep_until(due.into()) => {}
                }
                let from = if free > due { due } else { Instant::now() };
                device.say(answered.len() as u64, &mut buffer).await.expect("a device failed");
                free = Instant::now();
                answered.push(Answered { due, latency: free - from });
                due += interval;
            }
        });
    }
    let (mut devices, mut answered) = (Vec::new(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (device, some) = ended.expect("a device has panicked");
        devices.push(device);
        answered.extend(some);
    }
    devices.sort_unstable_by_key(|device| device.number);
    (devices, answered)
}

impl Device<TcpStream> {
    /// Sends its number and that of its turn repeatedly, and waits for the echo.
    async fn say(&mut self, turn: u64, buffer: &mut [u8]) -> io::Result<()> {
        let words = [self.number.to_be_bytes(), turn.to_be_bytes()];
        let said: Vec<u8> = words.into_iter().flatten().cycle().take(buffer.len()).collect();
        self.stream.write_all(&said).await?;
        self.stream.read_exact(buffer).await?;
        assert!(*buffer == *said, "device {} got other bytes than it has said in turn {turn}", self.number);
        Ok(())
    }

    /// Ends the stream; nothing more may arrive.
    pub async fn end(mut self) {
        self.stream.shutdown().await.expect("the socket is lost");
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.expect("the socket is lost");
        assert!(rest.is_empty(), "device {} got {} bytes twice", self.number, rest.len());
    }
}

/// The latency percentile.
pub fn percentile(latencies: &mut [Duration], percent: usize) -> Duration {
    latencies.sort_unstable();
    latencies.get(latencies.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}
