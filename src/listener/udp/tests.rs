use std::future::poll_fn;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use quinn_udp::{Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::*;
use crate::conn::SocketKind;
use crate::listener::SocketOptions;
use crate::listener::flow_gate::Scripted;
use crate::telemetry::Telemetry;

const PATIENCE: Duration = Duration::from_secs(20);

/// The most that a datagram can carry over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;

fn options(address: &str) -> Options {
    Options {
        name: "l".into(),
        bind: Bind { transport: SocketKind::Udp, address: address.parse().unwrap() },
        backlog: 1,
        unverified_max: 10,
        admission: Admission { handshake_timeout: PATIENCE, ..Admission::default() },
        socket_options: SocketOptions::default(),
        given: None,
        datagrams: Datagrams { sockets: 1, flows_max: 10, queue: Bounds { datagrams_max: 4, bytes_max: 200_000 } },
    }
}

fn queued() -> Arc<ByteBudget> {
    Arc::new(ByteBudget::new(usize::MAX))
}

/// The default options with these for datagrams.
fn with(address: &str, change: impl FnOnce(&mut Datagrams)) -> Options {
    let mut options = options(address);
    change(&mut options.datagrams);
    options
}

struct Bound {
    listener: UdpListener,
    telemetry: Telemetry,
}

fn bind(options: &Options, gate: impl Fn() -> FlowGate + Send + Sync + 'static, buffer_bytes: usize) -> Bound {
    let telemetry = Telemetry::new();
    let metrics = telemetry.listener(&options.name);
    let listener =
        UdpListener::bind_with(options, None, metrics, &queued(), GateFactory::new(gate), buffer_bytes).unwrap();
    Bound { listener, telemetry }
}

fn open(options: &Options) -> Bound {
    bind(options, || FlowGate::Open, BUFFER_BYTES)
}

fn count(telemetry: &Telemetry, metric: &str, reason: &str) -> u64 {
    let page = telemetry.render().unwrap();
    let line = format!("polygate_{metric}_total{{listener=\"l\",reason=\"{reason}\"}} ");
    page.lines().find_map(|text| text.strip_prefix(&line)).map_or(0, |value| value.parse().unwrap())
}

impl Bound {
    fn port(&self) -> u16 {
        self.listener.local_addr().0.port()
    }

    async fn accept(&mut self) -> Flow {
        within(self.listener.flow()).await
    }

    fn rejected(&self, reason: &str) -> u64 {
        count(&self.telemetry, "connections_rejected", reason)
    }

    async fn shed(&self, reason: &str, expected: u64) {
        within(async {
            while count(&self.telemetry, "dropped", reason) != expected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

async fn within<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, coming).await.unwrap()
}

async fn receive(flow: &mut Flow) -> Option<Bytes> {
    within(poll_fn(|cx| flow.poll_receive(cx))).await
}

async fn send(flow: &mut Flow, datagram: &[u8]) {
    within(poll_fn(|cx| flow.poll_send(cx, datagram))).await.unwrap();
}

struct Peer(UdpSocket);

impl Peer {
    async fn bind(address: &str) -> Self {
        Self(UdpSocket::bind(address).await.unwrap())
    }

    async fn send(&self, to: &str, port: u16, datagram: &[u8]) {
        self.0.send_to(datagram, (to, port)).await.unwrap();
    }

    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let (bytes, from) = within(self.0.recv_from(&mut buffer)).await.unwrap();
        buffer.truncate(bytes);
        (buffer, from)
    }
}

/// Each datagram is one event, whatever its size, and each response one datagram.
#[tokio::test]
async fn datagrams_keep_their_borders() {
    let mut bound = open(&options("127.0.0.1:0"));
    let peer = Peer::bind("127.0.0.1:0").await;
    let datagrams = [b"first".to_vec(), Vec::new(), b"third".to_vec(), vec![7; DATAGRAM_BYTES_MAX]];
    for datagram in &datagrams {
        peer.send("127.0.0.1", bound.port(), datagram).await;
    }
    let mut flow = bound.accept().await;
    assert_eq!(flow.peer().0, peer.0.local_addr().unwrap());
    for datagram in &datagrams {
        let received = receive(&mut flow).await.unwrap();
        assert_eq!(received, datagram);
        send(&mut flow, &received).await;
    }
    for datagram in &datagrams {
        assert_eq!(peer.receive().await, (datagram.clone(), bound.listener.local_addr().0));
    }
}

/// A buffer of coalesced datagrams is split into the sent ones.
#[tokio::test]
async fn coalesced_datagrams_are_split() {
    let options = with("127.0.0.1:0", |datagrams| datagrams.queue = Bounds { datagrams_max: 64, bytes_max: 200_000 });
    let mut bound = open(&options);
    let peer = Peer::bind("127.0.0.1:0").await;
    let state = UdpSocketState::new((&peer.0).into()).unwrap();
    let contents: Vec<u8> = (0..1050u32).map(|byte| (byte / 5) as u8).collect();
    let transmit = Transmit {
        destination: bound.listener.local_addr().0,
        ecn: None,
        contents: &contents,
        segment_size: Some(100),
        src_ip: None,
    };
    within(peer.0.async_io(Interest::WRITABLE, || state.try_send((&peer.0).into(), &transmit))).await.unwrap();
    let mut flow = bound.accept().await;
    for expected in contents.chunks(100) {
        assert_eq!(receive(&mut flow).await.unwrap(), expected);
    }
}

/// A response leaves from the local address that the device has sent to; another local address is another flow.
#[tokio::test]
async fn the_asked_address_answers() {
    for (wildcard, asked) in [("0.0.0.0:0", ["127.0.0.2", "127.0.0.3"]), ("[::]:0", ["127.0.0.2", "127.0.0.3"])] {
        let mut bound = open(&options(wildcard));
        let peer = Peer::bind("127.0.0.1:0").await;
        for asked in asked {
            peer.send(asked, bound.port(), asked.as_bytes()).await;
            let mut flow = bound.accept().await;
            let datagram = receive(&mut flow).await.unwrap();
            send(&mut flow, &datagram).await;
            let from = SocketAddr::new(asked.parse().unwrap(), bound.port());
            assert_eq!(peer.receive().await, (asked.into(), from));
            assert_eq!(flow.local().0, from, "an IPv4 address, also on a dual-stack socket");
        }
    }
}

/// IPv6 works as IPv4 does.
#[tokio::test]
async fn ipv6() {
    for address in ["[::1]:0", "[::]:0"] {
        let mut bound = open(&options(address));
        let peer = Peer::bind("[::1]:0").await;
        peer.send("::1", bound.port(), b"six").await;
        let mut flow = bound.accept().await;
        let datagram = receive(&mut flow).await.unwrap();
        send(&mut flow, &datagram).await;
        assert_eq!(peer.receive().await, (b"six".to_vec(), flow.local().0));
    }
}

/// A full queue drops the newest datagram, for each of its two bounds.
#[tokio::test]
async fn a_full_queue_sheds() {
    let queue = Bounds { datagrams_max: 4, bytes_max: 1000 };
    let mut bound = open(&with("127.0.0.1:0", |datagrams| datagrams.queue = queue));
    let many = Peer::bind("127.0.0.1:0").await;
    for number in 0..7u8 {
        many.send("127.0.0.1", bound.port(), &[number]).await;
    }
    let long = Peer::bind("127.0.0.1:0").await;
    for number in 0..3u8 {
        long.send("127.0.0.1", bound.port(), &[number; 600]).await;
    }
    bound.shed("datagrams_full", 3).await;
    bound.shed("datagram_bytes_full", 1).await;
    for datagrams in [vec![vec![0], vec![1], vec![2], vec![3]], vec![vec![0; 600], vec![1; 600]]] {
        let mut flow = bound.accept().await;
        for datagram in datagrams {
            assert_eq!(receive(&mut flow).await.unwrap(), datagram);
        }
    }
}

/// Beyond the limit a new peer is rejected, and accepted once another one has gone.
#[tokio::test]
async fn flows_are_bounded() {
    let mut bound = open(&with("127.0.0.1:0", |datagrams| datagrams.flows_max = 1));
    let (first, second) = (Peer::bind("127.0.0.1:0").await, Peer::bind("127.0.0.1:0").await);
    first.send("127.0.0.1", bound.port(), b"first").await;
    let mut flow = bound.accept().await;
    second.send("127.0.0.1", bound.port(), b"second").await;
    bound.shed("connections_max", 1).await;
    assert_eq!(bound.rejected("connections_max"), 1);
    first.send("127.0.0.1", bound.port(), b"again").await;
    assert_eq!(receive(&mut flow).await.unwrap(), "first");
    assert_eq!(receive(&mut flow).await.unwrap(), "again");
    drop(flow);
    second.send("127.0.0.1", bound.port(), b"again").await;
    assert_eq!(bound.accept().await.peer().0, second.0.local_addr().unwrap());
    bound.shed("flow_ended", 1).await;
}

/// Flows that wait for the accept loop are bounded too.
#[tokio::test]
async fn waiting_flows_are_bounded() {
    let mut bound = open(&with("127.0.0.1:0", |datagrams| datagrams.flows_max = usize::MAX));
    let mut peers = Vec::new();
    for number in 0..ARRIVALS_MAX + 3 {
        let peer = Peer::bind("127.0.0.1:0").await;
        peer.send("127.0.0.1", bound.port(), &number.to_be_bytes()).await;
        peers.push(peer);
        // The kernel's own queue is not under test.
        tokio::task::yield_now().await;
    }
    bound.shed("accept_queue_full", 3).await;
    assert_eq!(bound.rejected("accept_queue_full"), 3);
    for _ in 0..ARRIVALS_MAX {
        drop(bound.accept().await);
    }
    peers[0].send("127.0.0.1", bound.port(), b"again").await;
    assert_eq!(bound.accept().await.peer().0, peers[0].0.local_addr().unwrap());
}

/// Datagrams that the kernel drops at a full buffer are counted too.
#[tokio::test]
async fn kernel_drops_are_counted() {
    const SENT: u64 = 50_000;
    let bound = open(&options("127.0.0.1:0"));
    let peer = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    // The receiving task does not run meanwhile.
    for _ in 0..SENT {
        peer.send_to(b"x", bound.listener.local_addr().0).unwrap();
    }
    within(async {
        let counted =
            || count(&bound.telemetry, "dropped", "kernel_full") + count(&bound.telemetry, "dropped", "datagrams_full");
        while counted() + 4 != SENT {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(count(&bound.telemetry, "dropped", "kernel_full") > 0);
}

/// A truncated datagram is dropped.
#[tokio::test]
async fn a_cut_datagram_is_shed() {
    let mut bound = bind(&options("127.0.0.1:0"), || FlowGate::Open, 100);
    let peer = Peer::bind("127.0.0.1:0").await;
    peer.send("127.0.0.1", bound.port(), &[1; 101]).await;
    bound.shed("datagram_truncated", 1).await;
    peer.send("127.0.0.1", bound.port(), &[2; 99]).await;
    assert_eq!(receive(&mut bound.accept().await).await.unwrap(), [2; 99][..]);
}

/// A datagram that cannot be sent is counted, and the flow goes on.
#[tokio::test]
async fn a_datagram_that_is_too_large() {
    let mut bound = open(&options("127.0.0.1:0"));
    let peer = Peer::bind("127.0.0.1:0").await;
    peer.send("127.0.0.1", bound.port(), b"ask").await;
    let mut flow = bound.accept().await;
    send(&mut flow, &vec![0; DATAGRAM_BYTES_MAX + 1]).await;
    bound.shed("datagram_too_large", 1).await;
    send(&mut flow, b"answer").await;
    assert_eq!(peer.receive().await.0, b"answer");
}

/// An ICMP error about one peer does not affect the others.
#[tokio::test]
async fn a_peer_that_is_gone_ends_nothing() {
    let mut bound = open(&options("127.0.0.1:0"));
    let gone = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    gone.send_to(b"bye", bound.listener.local_addr().0).unwrap();
    let mut flow = bound.accept().await;
    drop(gone);
    for _ in 0..3 {
        send(&mut flow, b"anybody?").await;
    }
    let peer = Peer::bind("127.0.0.1:0").await;
    peer.send("127.0.0.1", bound.port(), b"ask").await;
    let mut flow = bound.accept().await;
    send(&mut flow, b"answer").await;
    assert_eq!(peer.receive().await.0, b"answer");
}

/// Each peer stays on its socket, and all sockets are used.
#[tokio::test]
async fn several_sockets() {
    let mut bound = open(&with("127.0.0.1:0", |datagrams| (datagrams.sockets, datagrams.flows_max) = (4, 200)));
    let mut flows = Vec::new();
    for number in 0..100u8 {
        let peer = Peer::bind("127.0.0.1:0").await;
        peer.send("127.0.0.1", bound.port(), &[number]).await;
        flows.push((peer, bound.accept().await));
    }
    let mut sockets: Vec<_> = flows.iter().map(|(_, flow)| Arc::as_ptr(&flow.socket)).collect();
    sockets.sort_unstable();
    sockets.dedup();
    assert_eq!(sockets.len(), 4);
    for (number, (peer, flow)) in flows.iter_mut().enumerate() {
        peer.send("127.0.0.1", bound.port(), b"again").await;
        assert_eq!(receive(flow).await.unwrap(), [number as u8][..]);
        assert_eq!(receive(flow).await.unwrap(), "again");
    }
}

/// Two flows that wait for the same socket are both woken.
#[tokio::test]
async fn every_waiting_sender_is_woken() {
    let mut bound = open(&options("127.0.0.1:0"));
    let mut peers = Vec::new();
    for _ in 0..2 {
        let peer = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(b"ask", bound.listener.local_addr().0).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peers.push((peer, bound.accept().await));
    }
    // As when the kernel's buffer is full.
    peers[0].1.socket.pretend_full();
    let mut sends: Vec<_> = peers
        .iter_mut()
        .map(|(peer, flow)| {
            let socket = Arc::clone(&flow.socket);
            (peer, socket, Box::pin(poll_fn(|cx| flow.poll_send(cx, b"answer"))))
        })
        .collect();
    let mut buffer = [0; 10];
    for (_, _, send) in &mut sends {
        assert!(futures_poll(send.as_mut()).await.is_pending());
    }
    // The next event of the socket: the kernel has sent something and is writable again.
    let (peer, socket, _) = &sends[0];
    socket.send_unasked(b"x", peer.local_addr().unwrap());
    for (peer, _, send) in sends {
        within(send).await.unwrap();
        assert!(peer.recv(&mut buffer).unwrap() > 0);
    }
}

async fn futures_poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// A closed flow receives nothing more and can still send; the same peer may have another one meanwhile.
#[tokio::test]
async fn a_closed_flow_leaves_its_place() {
    let mut bound = open(&options("127.0.0.1:0"));
    let peer = Peer::bind("127.0.0.1:0").await;
    peer.send("127.0.0.1", bound.port(), b"first").await;
    let mut first = bound.accept().await;
    first.close();
    bound.shed("flow_ended", 1).await;
    assert_eq!(receive(&mut first).await, None);
    peer.send("127.0.0.1", bound.port(), b"second").await;
    let mut second = bound.accept().await;
    send(&mut first, b"bye").await;
    assert_eq!(peer.receive().await.0, b"bye");
    drop(first);
    peer.send("127.0.0.1", bound.port(), b"third").await;
    assert_eq!(receive(&mut second).await.unwrap(), "second");
    assert_eq!(receive(&mut second).await.unwrap(), "third");
}

/// The gate answers new peers, keeps no state for them, and admits valid ones; a restarted peer replaces
/// its flow.
#[tokio::test]
async fn the_gate_decides() {
    let mut bound = bind(&options("127.0.0.1:0"), || FlowGate::Scripted(Scripted), BUFFER_BYTES);
    let peer = Peer::bind("127.0.0.1:0").await;
    let port = bound.port();
    peer.send("127.0.0.1", port, b"nonsense").await;
    bound.shed("no_valid_cookie", 1).await;
    peer.send("127.0.0.1", port, b"hello").await;
    assert!(peer.receive().await.0.starts_with(b"127.0.0.1:"));

    peer.send("127.0.0.1", port, b"hello 7").await;
    let mut first = bound.accept().await;
    assert!(matches!(first.entry_mut(), FlowStart::Scripted(7)));
    peer.send("127.0.0.1", port, b"data").await;
    assert_eq!(receive(&mut first).await.unwrap(), "data", "the gate has consumed its own datagram");
    peer.send("127.0.0.1", port, b"hello 7").await;
    assert_eq!(receive(&mut first).await.unwrap(), "hello 7", "sent again, it is the flow's own");

    peer.send("127.0.0.1", port, b"last").await;
    peer.send("127.0.0.1", port, b"hello 8").await;
    let mut second = bound.accept().await;
    assert_eq!(receive(&mut first).await.unwrap(), "last");
    assert_eq!(receive(&mut first).await, None);
    drop(first);
    peer.send("127.0.0.1", port, b"more").await;
    assert_eq!(receive(&mut second).await.unwrap(), "more", "the end of the first flow does not end the second");
}

/// Another listener takes over the sockets when it begins, and not before; the flows stay.
#[tokio::test]
async fn another_listener_takes_over() {
    let mut bound = open(&options("127.0.0.1:0"));
    let peer = Peer::bind("127.0.0.1:0").await;
    peer.send("127.0.0.1", bound.port(), b"first").await;
    let mut flow = bound.accept().await;

    let address = bound.listener.local_addr().0;
    let metrics = bound.telemetry.listener(&"next".into());
    let predecessor = bound.listener.settings();
    let renamed = with(&address.to_string(), |datagrams| datagrams.queue.datagrams_max = 1);
    let gates = GateFactory::new(|| FlowGate::Scripted(Scripted));
    let mut next =
        UdpListener::bind_with(&renamed, Some(&predecessor), metrics, &queued(), gates, BUFFER_BYTES).unwrap();
    let second = Peer::bind("127.0.0.1:0").await;
    second.send("127.0.0.1", bound.port(), b"second").await;
    assert_eq!(receive(&mut bound.accept().await).await.unwrap(), "second");

    next.begin();
    drop(bound.listener);
    let third = Peer::bind("127.0.0.1:0").await;
    third.send("127.0.0.1", address.port(), b"hello 3").await;
    let mut flow_of_next = within(next.flow()).await;
    assert!(matches!(flow_of_next.entry_mut(), FlowStart::Scripted(3)), "at the new gate");
    peer.send("127.0.0.1", address.port(), b"again").await;
    assert_eq!(receive(&mut flow).await.unwrap(), "first");
    assert_eq!(receive(&mut flow).await.unwrap(), "again");
    for _ in 0..3 {
        third.send("127.0.0.1", address.port(), b"data").await;
    }
    within(async {
        let page = || bound.telemetry.render().unwrap();
        while !page().contains("polygate_dropped_total{listener=\"next\",reason=\"datagrams_full\"} 2") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The sockets live as long as there is a flow, and no longer.
#[tokio::test]
async fn sockets_outlive_the_listener() {
    let Bound { mut listener, telemetry } = open(&with("127.0.0.1:0", |datagrams| datagrams.sockets = 2));
    let address = listener.local_addr().0;
    let peer = Peer::bind("127.0.0.1:0").await;
    peer.send("127.0.0.1", address.port(), b"ask").await;
    let mut flow = within(listener.flow()).await;
    let stranger = Peer::bind("127.0.0.1:0").await;
    stranger.send("127.0.0.1", address.port(), b"not accepted").await;
    drop(listener);
    stranger.send("127.0.0.1", address.port(), b"too late").await;
    peer.send("127.0.0.1", address.port(), b"again").await;
    assert_eq!(receive(&mut flow).await.unwrap(), "ask");
    assert_eq!(receive(&mut flow).await.unwrap(), "again");
    assert!(StdUdpSocket::bind(address).is_err(), "still bound");
    within(async {
        while count(&telemetry, "dropped", "draining") + count(&telemetry, "dropped", "flow_ended") < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    drop(flow);
    within(async {
        while StdUdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
