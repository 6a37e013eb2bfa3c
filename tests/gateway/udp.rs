//! What the gateway promises a UDP peer, whatever its handler.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use polygate::testing::exproto::proto;
use proto::ResultCode;
use quinn_udp::{Transmit, UdpSocketState};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::sync::Notify;
use tonic::Status;

use crate::harness::scripted_handler::{Callback, Calls, Event, ScriptedHandler, Serves};
use crate::harness::transport::Transport;
use crate::harness::{GatewayUnderTest, Setup, eventually, within};

/// The most that a datagram can carry over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Each of three datagrams is an event of its own, in order; so is an empty one.
#[tokio::test(flavor = "multi_thread")]
async fn one_datagram_is_one_event() {
    let (gateway, mut handler) = quiet().await;
    let device = Device::new().await;
    let to = gateway.listener();
    for datagram in ["one", "", "three"] {
        device.send(to, datagram).await;
    }
    let conn = handler.next_created().await;
    for datagram in ["one", "", "three"] {
        assert_eq!(bytes_of(&mut handler, &conn).await, datagram.as_bytes());
    }
    gateway.metric_reaches("polygate_received_bytes_total{listener=\"l\"}", 8.0).await;
}

/// Each of three Sends of one event is a datagram of its own, in order.
#[tokio::test(flavor = "multi_thread")]
async fn one_send_is_one_datagram() {
    let gateway = scripted(|callback, calls| async move {
        if matches!(callback.event, Event::Bytes(_)) {
            for piece in ["one", "two", "three"] {
                calls.send_ok(&callback.conn, piece).await;
            }
        }
        Ok(())
    })
    .await;
    let device = Device::new().await;
    device.send(gateway.listener(), "?").await;
    for piece in ["one", "two", "three"] {
        assert_eq!(device.receive().await, (piece.as_bytes().to_vec(), gateway.listener()));
    }
}

/// A thousand datagrams of a peer that waits for each answer keep their order through both kinds of handler.
#[tokio::test(flavor = "multi_thread")]
async fn order() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await;
    let remote = Setup::grpc(&handler).over(Transport::Udp).start().await;
    handler.use_adapter(remote.adapter());
    for gateway in [raw_echo().start().await, remote] {
        let device = Device::new().await;
        for round in 0..50 {
            let datagrams: Vec<_> = (0..20).map(|number| format!("{round}:{number}")).collect();
            for datagram in &datagrams {
                device.send(gateway.listener(), datagram).await;
            }
            for datagram in datagrams {
                assert_eq!(device.receive().await.0, datagram.as_bytes());
            }
        }
    }
}

/// The longest datagram goes both ways whole. A longer Send is refused, with its reason, and nothing ends.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_datagram() {
    let gateway = scripted(|callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            let longer = [&bytes[..], b"!"].concat();
            if bytes.len() == DATAGRAM_BYTES_MAX {
                let send = proto::SendBytesRequest { conn: callback.conn.clone(), bytes: longer.into() };
                let answer = calls.send(send).await;
                assert_eq!(answer.code, i32::from(ResultCode::ParamsTypeError));
                assert_eq!(answer.message, "bytes: one Send is one datagram: expected at most 65507 bytes, got 65508");
            }
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await;
    let device = Device::new().await;
    for datagram in [vec![1; DATAGRAM_BYTES_MAX], b"short".to_vec()] {
        device.send(gateway.listener(), &datagram).await;
        assert!(device.receive().await.0 == datagram, "of {} bytes", datagram.len());
    }
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 1.0);
}

/// A device that asks one address of a wildcard gets its answer from there, and its handler knows which one it was.
#[tokio::test(flavor = "multi_thread")]
async fn the_asked_address_answers() {
    for bind in ["udp://0.0.0.0:0", "udp://[::]:0"] {
        let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
            if let Event::Created(info) = callback.event {
                let (peer, local) = (info.peername.unwrap(), info.sockname.unwrap());
                let text = format!("{} {}:{} {}", info.socktype, local.host, local.port, peer.host);
                calls.send_ok(&callback.conn, text).await;
            }
            Ok(())
        })
        .await;
        let gateway = Setup::grpc(&handler).over(Transport::Udp).bind(bind).start().await;
        handler.use_adapter(gateway.adapter());
        let device = Device::new().await;
        for asked in [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)] {
            let asked = SocketAddr::from((asked, gateway.listener().port()));
            device.send(asked, "who?").await;
            let udp = proto::SocketType::Udp as i32;
            assert_eq!(device.receive().await, (format!("{udp} {asked} 127.0.0.1").into(), asked));
        }
        gateway.metric_reaches("polygate_connections{listener=\"l\"}", 2.0).await;
    }
}

/// The same over IPv6.
#[tokio::test(flavor = "multi_thread")]
async fn ipv6() {
    let gateway = raw_echo().bind("udp://[::1]:0").start().await;
    let device = Device::on("[::1]:0").await;
    device.send(gateway.listener(), "six").await;
    assert_eq!(device.receive().await, (b"six".to_vec(), gateway.listener()));
}

/// At the limit a new peer is rejected and counted; it is accepted once another one has gone.
#[tokio::test(flavor = "multi_thread")]
async fn connections_max() {
    let gateway = raw_echo().listener("connections_max = 1\nflow_timeout = \"300ms\"").start().await;
    let (first, second) = (Device::new().await, Device::new().await);
    first.echo(&gateway, "a").await;
    second.send(gateway.listener(), "b").await;
    gateway.metric_reaches("polygate_connections_rejected_total{listener=\"l\",reason=\"connections_max\"}", 1.0).await;
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 0.0).await;
    second.echo(&gateway, "c").await;
}

/// The bound is the listener's, however many sockets it has.
#[tokio::test(flavor = "multi_thread")]
async fn connections_max_of_several_sockets() {
    let gateway = raw_echo().listener("connections_max = 5\nsockets = 4").start().await;
    let mut devices = Vec::new();
    for _ in 0..20 {
        let device = Device::new().await;
        device.send(gateway.listener(), "a").await;
        devices.push(device);
    }
    gateway
        .metric_reaches("polygate_connections_rejected_total{listener=\"l\",reason=\"connections_max\"}", 15.0)
        .await;
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 5.0);
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 5.0);
}

/// What comes for a handler that is behind is shed beyond its bound and counted, the newest first; another peer of the
/// same handler is served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_sheds_its_own_datagrams() {
    let go_on = Arc::new(Notify::new());
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let go_on = Arc::clone(&go_on);
        move |callback, calls| {
            let go_on = Arc::clone(&go_on);
            async move {
                if let Event::Bytes(bytes) = callback.event {
                    if bytes == "slow" {
                        go_on.notified().await;
                    }
                    calls.send_ok(&callback.conn, bytes).await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway =
        Setup::grpc(&handler).over(Transport::Udp).listener("datagrams_max = 8\ninbound_max = \"1KiB\"").start().await;
    handler.use_adapter(gateway.adapter());
    let (slow, lively) = (Device::new().await, Device::new().await);
    slow.send(gateway.listener(), "slow").await;
    handler.next_created().await;
    assert!(matches!(handler.next().await.event, Event::Bytes(_)));

    // Eleven fill what the connection holds, by their bytes; eight wait in the flow's queue, and the rest is shed.
    let datagrams: Vec<_> = (0..30).map(|number| format!("{number:0>100}")).collect();
    for (index, datagram) in datagrams.iter().enumerate() {
        slow.send(gateway.listener(), datagram).await;
        let held = 100 * (index + 1).min(11);
        gateway.metric_reaches("polygate_inbound_queue_bytes{listener=\"l\"}", held as f64).await;
        lively.echo(&gateway, "lively").await;
    }
    gateway.metric_reaches("polygate_dropped_total{listener=\"l\",reason=\"datagrams_full\"}", 11.0).await;
    go_on.notify_one();
    assert_eq!(slow.receive().await.0, b"slow");
    for datagram in &datagrams[..19] {
        assert_eq!(slow.receive().await.0, datagram.as_bytes(), "the oldest are kept, in order");
    }
    slow.echo(&gateway, "and on it goes").await;
}

/// Few long datagrams are shed by their bytes.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_bounded_too() {
    let go_on = Arc::new(Notify::new());
    let gateway = scripted_with("inbound_max = \"1KiB\"", {
        let go_on = Arc::clone(&go_on);
        move |callback, _| {
            let go_on = Arc::clone(&go_on);
            async move {
                if matches!(callback.event, Event::Created(_)) {
                    go_on.notified().await;
                }
                Ok(())
            }
        }
    })
    .await;
    let device = Device::new().await;
    let full = "polygate_dropped_total{listener=\"l\",reason=\"datagram_bytes_full\"}";
    within("a datagram to be shed", async {
        while gateway.metric(full) < 1.0 {
            device.send(gateway.listener(), [0; 1000]).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(gateway.metric("polygate_inbound_queue_bytes{listener=\"l\"}") <= 2000.0);
    go_on.notify_one();
    gateway.metric_reaches("polygate_inbound_queue_bytes{listener=\"l\"}", 0.0).await;
}

/// A flow ends after some silence, at any time; its handler gets the reason, and the next datagram is a new connection.
#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_a_flow() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).listener("flow_timeout = \"300ms\"").start().await;
    handler.use_adapter(gateway.adapter());
    let device = Device::new().await;
    let mut conns = Vec::new();
    for _ in 0..2 {
        device.send(gateway.listener(), "a").await;
        conns.push(handler.next_created().await);
        assert_eq!(handler.next_closed().await, "{shutdown,idle_timeout}");
    }
    assert_ne!(conns[0], conns[1]);
}

/// A device that has spoken stays for as long as the flow timeout, whatever the idle timeout is: one that reports once an hour keeps
/// its connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_idle_timeout_ends_with_the_first_datagram() {
    let gateway = raw_echo().listener("idle_timeout = \"50ms\"").start().await;
    let device = Device::new().await;
    device.echo(&gateway, "a").await;
    let silent = Device::new().await;
    silent.echo(&gateway, "b").await;
    // A TCP peer of the same timeout ends in the meantime, so that more than it has passed.
    let tcp = raw_echo().bind("tcp://127.0.0.1:0").listener("idle_timeout = \"100ms\"").start().await;
    tcp.connect().await.expect_closed().await;
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 2.0);
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 2.0);
}

/// While datagrams come, silence is counted from the last one; a keepalive timer takes the place of the idle timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_keepalive_timer_decides_instead() {
    let gateway = scripted_with("flow_timeout = \"1s\"", |callback, calls| async move {
        if matches!(callback.event, Event::Created(_)) {
            let timer = proto::TimerRequest { conn: callback.conn.clone(), r#type: 0, interval: 1 };
            assert_eq!(calls.start_timer(timer).await, proto::CodeResponse::default());
        }
        Ok(())
    })
    .await;
    let device = Device::new().await;
    device.send(gateway.listener(), "a").await;
    // The other's datagrams do not count for the silent one, though both use one socket.
    let lively = Device::new().await;
    within("the keepalive interval to run out", async {
        while gateway.metric("polygate_closes_total{listener=\"l\",reason=\"keepalive_expired\"}") < 1.0 {
            lively.send(gateway.listener(), "b").await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 1.0, "the lively one stays");
    assert_eq!(gateway.metric("polygate_closes_total{listener=\"l\",reason=\"idle_timed_out\"}"), 0.0);
}

/// Thousands of peers share a socket, each with a connection and an instance of its own.
#[tokio::test(flavor = "multi_thread")]
async fn many_flows_of_one_socket() {
    const SOCKETS: usize = 20;
    const ADDRESSES: usize = 250;
    let keys = "flow_timeout = \"1h\"\nunverified_timeout = \"1h\"\nunverified_max = 5000";
    let gateway = raw_echo().bind("udp://127.0.0.1:0").listener(keys).start().await;
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(Device::on("0.0.0.0:0").await);
    }
    for round in 0..2 {
        for (number, device) in sockets.iter().enumerate() {
            for address in 0..ADDRESSES {
                let from = Ipv4Addr::new(127, 0, 1, address as u8 + 1);
                device.send_from(from, gateway.listener(), &format!("{round}:{number}:{address}")).await;
                assert_eq!(device.receive().await.0, format!("{round}:{number}:{address}").as_bytes());
            }
        }
    }
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", (SOCKETS * ADDRESSES) as f64).await;
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), (SOCKETS * ADDRESSES) as f64);
    assert_eq!(gateway.stop().await, 0);
}

/// Several sockets are one listener to the devices.
#[tokio::test(flavor = "multi_thread")]
async fn several_sockets() {
    let gateway = raw_echo().listener("sockets = 4").start().await;
    let mut devices = Vec::new();
    for _ in 0..100 {
        devices.push(Device::new().await);
    }
    for _ in 0..3 {
        for device in &devices {
            device.echo(&gateway, "a").await;
        }
    }
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 100.0);
}

/// A gateway that stops lets an event end, still hears the peer, and sends what its handler answers.
#[tokio::test(flavor = "multi_thread")]
async fn drain() {
    let (begun, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        move |callback, calls| {
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            async move {
                if let Event::Bytes(bytes) = callback.event {
                    if !begun.swap(true, Ordering::SeqCst) {
                        go_on.notified().await;
                    }
                    calls.send_ok(&callback.conn, bytes).await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).start().await;
    handler.use_adapter(gateway.adapter());
    let (device, stranger) = (Device::new().await, Device::new().await);
    let to = gateway.listener();
    device.send(to, "before").await;
    eventually("the handler has the event", || begun.load(Ordering::SeqCst)).await;
    device.send(to, "waits").await;
    gateway.metric_reaches("polygate_inbound_queue_bytes{listener=\"l\"}", 5.0).await;

    let telemetry = gateway.telemetry();
    let stopping = tokio::spawn(gateway.stop());
    within("a new peer to be rejected", async {
        let line = "polygate_connections_rejected_total{listener=\"l\",reason=\"draining\"}";
        while !telemetry.render().unwrap().contains(line) {
            stranger.send(to, "too late").await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    go_on.notify_one();
    assert_eq!(device.receive().await.0, b"before");
    assert_eq!(device.receive().await.0, b"waits");
    assert_eq!(within("the gateway to stop", stopping).await.unwrap(), 0);
    assert_eq!(handler.next_closed().await, "{shutdown,normal}");
    UdpSocket::bind(to).await.expect("the port is free again");
}

/// The handler's Close ends the flow after what it sent; the same peer may begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn close_then_begin_anew() {
    let gateway = scripted(|callback, calls| async move {
        if matches!(callback.event, Event::Bytes(_)) {
            calls.send_ok(&callback.conn, "bye").await;
            calls.close(proto::CloseSocketRequest { conn: callback.conn }).await;
        }
        Ok(())
    })
    .await;
    let device = Device::new().await;
    for round in 1..=3 {
        device.send(gateway.listener(), "hello").await;
        assert_eq!(device.receive().await.0, b"bye");
        let closes = "polygate_closes_total{listener=\"l\",reason=\"handler_asked\"}";
        gateway.metric_reaches(closes, f64::from(round)).await;
        gateway.metric_reaches("polygate_connections{listener=\"l\"}", 0.0).await;
    }
}

/// A datagram that the network gives back as undeliverable is nobody's end but its peer's, by silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_gone_disturbs_nobody() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).start().await;
    handler.use_adapter(gateway.adapter());
    let gone = Device::new().await;
    gone.send(gateway.listener(), "hello").await;
    let conn = handler.next_created().await;
    drop(gone);
    for _ in 0..5 {
        handler.calls().send_ok(&conn, "anybody?").await;
    }
    let device = Device::new().await;
    device.send(gateway.listener(), "hello").await;
    assert_ne!(loop_created(&mut handler).await, conn);
    assert_eq!(gateway.metric("polygate_connections{listener=\"l\"}"), 2.0);
}

/// Programs that others wrote get their bytes back.
#[tokio::test(flavor = "multi_thread")]
async fn programs_of_others() {
    let gateway = raw_echo().start().await;
    let port = gateway.listener().port().to_string();
    let programs: [(&str, Vec<String>); 2] = [
        ("socat", vec!["-t20".into(), "-".into(), format!("udp4:127.0.0.1:{port}")]),
        ("ncat", vec!["-u".into(), "127.0.0.1".into(), port]),
    ];
    for (program, arguments) in programs {
        let child = Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: there is no {program}");
            continue;
        };
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        input.write_all(b"hello from another program\n").await.unwrap();
        let mut answer = [0; 27];
        within("the echo", output.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"hello from another program\n");
        child.kill().await.unwrap();
    }
}

/// A login over UDP is a client of the broker like any other.
#[tokio::test(flavor = "multi_thread")]
async fn same_client_id_from_another_port() {
    let handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).start().await;
    handler.use_adapter(gateway.adapter());
    let _before = gateway.login("device-1").await;
    let mut after = gateway.login("device-1").await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"replaced\"}", 1.0).await;
    assert_eq!(after.publish("t", "still here").await, json!({"type": 4, "code": 0}));
}

/// A gateway that gives every datagram back at once.
fn raw_echo() -> Setup {
    Setup::guest("echo").handler("settings = { mode = \"raw\" }").over(Transport::Udp)
}

/// A gateway whose handler does nothing by itself.
async fn quiet() -> (GatewayUnderTest, ScriptedHandler) {
    let handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).start().await;
    handler.use_adapter(gateway.adapter());
    (gateway, handler)
}

/// A gateway with its handler.
struct Scripted {
    gateway: GatewayUnderTest,
    _handler: ScriptedHandler,
}

impl std::ops::Deref for Scripted {
    type Target = GatewayUnderTest;

    fn deref(&self) -> &GatewayUnderTest {
        &self.gateway
    }
}

async fn scripted<F>(script: impl Fn(Callback, Calls) -> F + Send + Sync + 'static) -> Scripted
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    scripted_with("", script).await
}

/// With keys of the listener.
async fn scripted_with<F>(keys: &str, script: impl Fn(Callback, Calls) -> F + Send + Sync + 'static) -> Scripted
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let handler = ScriptedHandler::start(Serves::Unary, script).await;
    let gateway = Setup::grpc(&handler).over(Transport::Udp).listener(keys).start().await;
    handler.use_adapter(gateway.adapter());
    Scripted { gateway, _handler: handler }
}

/// The bytes of the handler's next event.
async fn bytes_of(handler: &mut ScriptedHandler, conn: &str) -> Vec<u8> {
    let callback = handler.next().await;
    assert_eq!(callback.conn, conn);
    match callback.event {
        Event::Bytes(bytes) => bytes.to_vec(),
        other => panic!("no bytes, but {other:?}"),
    }
}

/// Passes over callbacks until the first of a new connection; gives its `conn`.
async fn loop_created(handler: &mut ScriptedHandler) -> String {
    loop {
        let callback = handler.next().await;
        if matches!(callback.event, Event::Created(_)) {
            return callback.conn;
        }
    }
}

/// A device that is nothing but a UDP socket.
struct Device {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Device {
    async fn new() -> Self {
        Self::on("127.0.0.1:0").await
    }

    async fn on(address: &str) -> Self {
        let socket = UdpSocket::bind(address).await.unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        Self { socket, state }
    }

    async fn send(&self, to: SocketAddr, datagram: impl AsRef<[u8]>) {
        self.socket.send_to(datagram.as_ref(), to).await.unwrap();
    }

    /// Sends as if it were another device.
    async fn send_from(&self, from: Ipv4Addr, to: SocketAddr, datagram: &str) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: datagram.as_bytes(),
            segment_size: None,
            src_ip: Some(from.into()),
        };
        let send = || self.state.try_send((&self.socket).into(), &transmit);
        self.socket.async_io(Interest::WRITABLE, send).await.unwrap();
    }

    /// The next datagram, and who sent it.
    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let (count, from) = within("a datagram", self.socket.recv_from(&mut buffer)).await.unwrap();
        buffer.truncate(count);
        (buffer, from)
    }

    async fn echo(&self, gateway: &GatewayUnderTest, datagram: &str) {
        self.send(gateway.listener(), datagram).await;
        assert_eq!(self.receive().await, (datagram.into(), gateway.listener()));
    }
}
