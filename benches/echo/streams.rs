//! The gateway's connections on streams in memory, with their devices in the same process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use polygate::conn::{ConnInfo, ListenAddr, PeerAddr, SocketKind};
use polygate::connection::Connections;
use tokio::io::DuplexStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::devices::{self, Device};
use crate::live::CONCURRENCY;
use crate::parts::Parts;

/// What a stream holds for the other side, in bytes; more than an echo.
const STREAM_BYTES: usize = 4096;

/// Opens, uses and closes devices as stdin asks for.
pub async fn serve(parts: Parts) {
    let connections = parts.connections(&parts.listeners[0]);
    let tasks = Mutex::new(JoinSet::new());
    devices::obey(
        CONCURRENCY,
        async |numbers, payload_bytes| open(&connections, &mut *tasks.lock().await, numbers, payload_bytes).await,
        async || while tasks.lock().await.join_next().await.is_some() {},
    )
    .await;
}

async fn open(
    connections: &Connections,
    tasks: &mut JoinSet<()>,
    numbers: Range<usize>,
    payload_bytes: usize,
) -> Vec<Device<DuplexStream>> {
    let mut devices = Vec::with_capacity(numbers.len());
    for number in numbers {
        let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let info = ConnInfo {
            kind: SocketKind::Tcp,
            peer: PeerAddr(anywhere),
            local: ListenAddr(anywhere),
            certificate: None,
        };
        let connection = connections.open(info, connections.permit().await);
        tasks.spawn(connection.run(theirs));
        devices.push(Device { number: number as u64, stream: ours });
    }
    let echoes = futures::stream::iter(devices).map(|mut device| async move {
        device.echo(&mut vec![0; payload_bytes]).await?;
        io::Result::Ok(device)
    });
    echoes.buffer_unordered(CONCURRENCY).try_collect().await.expect("a device failed")
}
