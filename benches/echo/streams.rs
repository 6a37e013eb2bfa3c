//! The gateway's connections on streams in memory, with their devices in the same process.

use std::io::{self, BufRead};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use polygate::auth::Auth;
use polygate::config::{Config, Program};
use polygate::conn::table::Table;
use polygate::conn::{ConnIds, ConnInfo, ListenAddr, PeerAddr, SocketKind};
use polygate::connection::Connections;
use polygate::dispatch::{Chain, Version, Versions};
use polygate::handler::{Handler, wasm};
use polygate::pubsub::PubSub;
use polygate::pubsub::embedded::Broker;
use polygate::tap::Taps;
use polygate::telemetry::Telemetry;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::live::{self, CONCURRENCY, Device};

/// What a stream holds for the other side, in bytes; more than an echo.
const STREAM_BYTES: usize = 4096;

/// Does what it is asked on stdin, one line at a time: `open` so many devices, `echo` for so many seconds, each with the
/// bytes of an echo, and `close` them.
pub async fn serve(config: Config) {
    let connections = connections(config).await;
    println!();
    let (line_tx, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if line_tx.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let (mut devices, mut tasks) = (Vec::new(), JoinSet::new());
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<usize>().expect("no number");
        match words[0] {
            "open" => {
                devices = open(&connections, &mut tasks, number(1), number(2)).await;
                println!("opened");
            }
            "echo" => {
                let span = Duration::from_secs(number(1) as u64);
                let (back, echoes) = live::echo(devices, number(2), span).await;
                devices = back;
                let [elapsed, p50, p99] = [echoes.elapsed, echoes.p50, echoes.p99].map(|time| time.as_micros());
                println!("{} {elapsed} {p50} {p99}", echoes.count);
            }
            "close" => {
                devices.clear();
                while tasks.join_next().await.is_some() {}
                println!("closed");
            }
            _ => panic!("no such request: {line:?}"),
        }
    }
}

/// The parts of a gateway that a connection needs.
async fn connections(config: Config) -> Connections {
    let telemetry = Telemetry::new();
    let auth = Auth::new(config.auth).expect("no users");
    let [handler] = <[_; 1]>::try_from(config.handlers).expect("one handler");
    let Program::Wasm(options) = handler.program else { panic!("a guest") };
    let host = wasm::Host::start(config.data_dir.join("components")).expect("no engine");
    let name = Arc::clone(&options.name);
    let guest = host.load(options, telemetry.instances(&name)).expect("no guest");
    let version = Version::new(1, Handler::Wasm(guest), handler.policy, telemetry.version(&name, 1));
    let versions = Versions::new(version, telemetry.health(&name));
    let [listener] = <[_; 1]>::try_from(config.listeners).expect("one listener");
    let metrics = telemetry.listener(&listener.socket.name);
    let chain = Chain::new(&listener.socket.name, [versions], &telemetry).expect("no chain");
    let pubsub = PubSub::Embedded(Broker::start(config.broker, auth.clone()).await.expect("no broker"));
    let mountpoint = listener.mountpoint;
    let services = polygate::adapter::Services { auth, pubsub, mountpoint, metrics: metrics.clone() };
    let ids = Arc::new(ConnIds::new().expect("no randomness"));
    Connections::new(listener.connection, ids, Table::default(), services, chain, Taps::default(), metrics)
}

async fn open(
    connections: &Connections,
    tasks: &mut JoinSet<()>,
    count: usize,
    payload_bytes: usize,
) -> Vec<Device<DuplexStream>> {
    let mut devices = Vec::with_capacity(count);
    for number in 0..count {
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
