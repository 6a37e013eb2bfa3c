//! What the gateway promises a TCP peer, whatever its handler.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use crate::harness::echo_device::EchoDevice;
use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::{Setup, eventually, within};

/// A gateway that gives every byte back at once.
fn raw_echo() -> Setup {
    Setup::guest("echo").handler("settings = { mode = \"raw\" }")
}

/// At the limit a peer waits in the kernel's backlog; it is served when another has gone.
#[tokio::test(flavor = "multi_thread")]
async fn connections_max() {
    let gateway = raw_echo().listener("connections_max = 1").start().await;
    let mut first = gateway.connect().await;
    first.send("a").await;
    first.expect("a").await;

    let mut second = gateway.connect().await;
    second.send("b").await;
    assert_eq!(gateway.connections(), 1, "the second is not accepted");

    drop(first);
    second.expect("b").await;
}

/// A peer that has sent no byte is ended after the idle timeout; one that has is not.
#[tokio::test(flavor = "multi_thread")]
async fn idle_timeout() {
    let gateway = raw_echo().listener("idle_timeout = \"200ms\"").start().await;
    let mut lively = gateway.connect().await;
    lively.send("a").await;
    lively.expect("a").await;
    let mut silent = gateway.connect().await;
    silent.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"idle_timed_out\"}", 1.0).await;
    lively.send("b").await;
    lively.expect("b").await;
}

/// A peer that ends its side still gets the answer to its last bytes.
#[tokio::test(flavor = "multi_thread")]
async fn half_close() {
    let handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = EchoDevice::connect(gateway.listener()).await;
    device.send(&json!({"type": 1, "clientinfo": {"clientid": "device-1"}})).await;
    device.peer().shutdown().await;
    assert_eq!(device.receive().await, json!({"type": 2, "code": 0}));
    device.expect_closed().await;

    let gateway = raw_echo().start().await;
    let mut peer = gateway.connect().await;
    peer.send("last words").await;
    peer.shutdown().await;
    peer.expect("last words").await;
    peer.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"peer_closed\"}", 1.0).await;
}

/// A refusal and a Close in one event reach a peer that goes on sending: the stream ends in order, and is
/// not reset over the unread bytes.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_a_close_arrives() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if matches!(callback.event, Event::Bytes(_)) {
            calls.send_ok(&callback.conn, "refused").await;
            let close = polygate::testing::exproto::proto::CloseSocketRequest { conn: callback.conn };
            calls.close(close).await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());

    for _ in 0..20 {
        let mut peer = gateway.connect().await;
        peer.send(vec![0; 300_000]).await;
        assert_eq!(peer.receive_to_end().await, b"refused");
    }
}

/// A device sees the end when its handler asks for it, not when the callback that asked returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_does_not_wait_for_the_callback() {
    let release = Arc::new(Notify::new());
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let release = Arc::clone(&release);
        move |callback, calls| {
            let release = Arc::clone(&release);
            async move {
                if matches!(callback.event, Event::Bytes(_)) {
                    calls.send_ok(&callback.conn, "refused").await;
                    let close = polygate::testing::exproto::proto::CloseSocketRequest { conn: callback.conn.clone() };
                    assert_eq!(calls.close(close).await.code, 0);
                    release.notified().await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    peer.send("hello").await;
    assert_eq!(peer.receive_to_end().await, b"refused");
    assert_eq!(gateway.connections(), 1, "the callback still runs");
    release.notify_one();
    assert_eq!(handler.next_closed().await, "{shutdown,normal}");
}

/// A peer that sends much and reads nothing is not read any more; when it reads, it gets every byte in order.
#[tokio::test(flavor = "multi_thread")]
async fn back_pressure() {
    const BYTES: usize = 16 << 20;
    // Longer than any test waits: what goes on does so because there is room again, not because a deadline rang.
    let gateway = raw_echo().listener("write_timeout = \"10m\"").start().await;
    let peer = gateway.connect().await;
    let (mut read, mut write) = peer.into_stream().into_split();
    let sent: Vec<u8> = (0..BYTES).map(|byte| (byte / 7) as u8).collect();

    // Sends until nothing is taken any more: the queues on the way are bounded.
    let mut taken = 0;
    while taken < BYTES {
        match tokio::time::timeout(Duration::from_millis(300), write.write(&sent[taken..])).await {
            Ok(count) => taken += count.unwrap(),
            Err(_) => break,
        }
    }
    assert!(taken < BYTES, "all {BYTES} bytes were taken without one being read");

    let rest = tokio::spawn({
        let rest = sent[taken..].to_vec();
        async move {
            write.write_all(&rest).await.unwrap();
            write.shutdown().await.unwrap();
        }
    });
    let mut received = Vec::new();
    within("all bytes", tokio::io::AsyncReadExt::read_to_end(&mut read, &mut received)).await.unwrap();
    rest.await.unwrap();
    assert!(received == sent, "{} of {BYTES} bytes came back, or in another order", received.len());
}

/// A peer that takes nothing of what it is sent is ended, and gives its place back.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_is_ended() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(_) = callback.event {
            // Far more than the buffers on the way hold.
            for _ in 0..64 {
                let request = polygate::testing::exproto::proto::SendBytesRequest {
                    conn: callback.conn.clone(),
                    bytes: vec![0; 1 << 20].into(),
                };
                if calls.send(request).await.code != 0 {
                    break;
                }
            }
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).listener("write_timeout = \"300ms\"").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    peer.send("go").await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"write_timed_out\"}", 1.0).await;
    assert_eq!(handler.next_closed().await, "{shutdown,send_timeout}");
    eventually("the connection is gone", || gateway.connections() == 0).await;
    gateway.metric_reaches("polygate_outbound_queue_bytes{listener=\"l\"}", 0.0).await;
}

/// The same when nothing else happens on the connection: its deadline is set by the write that did not go through.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_is_ended_in_silence() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).listener("write_timeout = \"300ms\"\nidle_timeout = \"10m\"").start().await;
    handler.use_adapter(gateway.adapter());
    let _peer = gateway.connect().await;
    let conn = handler.next_created().await;
    // Far more than the buffers on the way hold.
    handler.calls().send_ok(&conn, vec![0; 15 << 20]).await;
    assert_eq!(handler.next_closed().await, "{shutdown,send_timeout}");
    gateway.metric_reaches("polygate_outbound_queue_bytes{listener=\"l\"}", 0.0).await;
}

/// A device that goes on sending while its handler is behind is not taken for silent, although nobody reads it.
#[tokio::test(flavor = "multi_thread")]
async fn keepalive_does_not_count_while_the_socket_is_not_read() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            if bytes == "slow" {
                let timer = polygate::testing::exproto::proto::TimerRequest {
                    conn: callback.conn.clone(),
                    r#type: 0,
                    interval: 1,
                };
                assert_eq!(calls.start_timer(timer).await.code, 0);
                // Longer than one and a half intervals.
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).listener("inbound_max = \"1KiB\"").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    peer.send("slow").await;
    gateway.metric_reaches("polygate_adapter_calls_total{operation=\"StartTimer\",code=\"SUCCESS\"}", 1.0).await;
    let much = "m".repeat(2048);
    peer.send(&much).await;
    peer.expect("slow").await;
    peer.expect(&much).await;
    peer.send("still here").await;
    peer.expect("still here").await;
}

/// A reset ends the connection; what had been read before still reached the handler.
#[tokio::test(flavor = "multi_thread")]
async fn reset() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    device.peer().send("x").await;
    loop {
        if let Event::Bytes(bytes) = handler.next().await.event
            && bytes == "x"
        {
            break;
        }
    }
    device.reset();
    assert_eq!(handler.next_closed().await, "{shutdown,econnreset}");
}

/// What a device sent before a reset is handled, also when an answer to it found the stream broken.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_a_reset_are_handled() {
    let release = Arc::new(Notify::new());
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let release = Arc::clone(&release);
        move |callback, calls| {
            let release = Arc::clone(&release);
            async move {
                if matches!(&callback.event, Event::Bytes(bytes) if bytes == "first") {
                    release.notified().await;
                    calls.send_ok(&callback.conn, "too late").await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).listener("inbound_max = \"1KiB\"").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    handler.next_created().await;
    peer.send("first").await;
    handler.next().await;
    // The first part fills the queue, so the second is still in the socket when the stream breaks.
    peer.send([b'a'; 2048]).await;
    gateway.metric_reaches("polygate_inbound_queue_bytes{listener=\"l\"}", 2048.0).await;
    peer.send([b'b'; 2048]).await;
    peer.reset();
    release.notify_one();

    let mut got = Vec::new();
    let reason = loop {
        match handler.next().await.event {
            Event::Bytes(bytes) => got.extend_from_slice(&bytes),
            Event::Closed(reason) => break reason,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(got, [[b'a'; 2048], [b'b'; 2048]].concat());
    assert_eq!(reason, "{shutdown,econnreset}");
}

/// IPv6 peers are served, and shown as such.
#[tokio::test(flavor = "multi_thread")]
async fn ipv6() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).bind("tcp://[::1]:0").start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    let Event::Created(info) = handler.next().await.event else { panic!("not the first event") };
    let peer = info.peername.unwrap();
    assert_eq!((peer.host.as_str(), peer.port), ("::1", u32::from(device.peer().local_addr().port())));
    assert_eq!(info.sockname.unwrap().port, u32::from(gateway.listener().port()));
    assert_eq!(info.peercert, None);
}

/// At a stop every handler hears of the end of its connections, and the peers see an orderly one.
#[tokio::test(flavor = "multi_thread")]
async fn drain() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut devices = Vec::new();
    for number in 0..20 {
        devices.push(EchoDevice::login(gateway.listener(), &format!("device-{number}")).await);
    }
    let address = gateway.listener();
    assert_eq!(gateway.stop().await, 0, "no connection had to be cut off");
    for device in &mut devices {
        device.expect_closed().await;
    }
    for _ in 0..20 {
        assert_eq!(handler.next_closed().await, "{shutdown,normal}");
    }
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the listener is closed");
}

/// A stop does not wait longer than the drain timeout for a handler that hangs; what is left then is cut off, and
/// counted as such.
#[tokio::test(flavor = "multi_thread")]
async fn drain_timeout() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |callback, _| async move {
        if let Event::Bytes(_) = callback.event {
            std::future::pending::<()>().await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).gateway("drain_timeout = \"300ms\"").start().await;
    let mut peer = gateway.connect().await;
    handler.next_created().await;
    peer.send("hang").await;
    handler.next().await;
    let telemetry = gateway.telemetry();
    assert_eq!(gateway.stop().await, 1);
    peer.expect_closed().await;
    let page = telemetry.render().unwrap();
    for line in
        ["polygate_connections{listener=\"l\"} 0", "polygate_closes_total{listener=\"l\",reason=\"drain_timeout\"} 1"]
    {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

/// A burst of connections, more than the backlog of the accept loop: all are served.
#[tokio::test(flavor = "multi_thread")]
async fn many_connections() {
    let gateway = raw_echo().start().await;
    let mut peers = Vec::new();
    for _ in 0..500 {
        peers.push(gateway.connect().await);
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("peer {number}")).await;
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.expect(format!("peer {number}")).await;
    }
    drop(peers);
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 0.0).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 0.0).await;
    gateway.metric_reaches("polygate_instance_memory_bytes{handler=\"h\"}", 0.0).await;
}

/// Megabytes through a remote handler that sends them back piece by piece: each byte once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_through_a_remote_handler() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            for piece in bytes.chunks(1000) {
                calls.send_ok(&callback.conn, piece.to_vec()).await;
            }
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let peer = RawPeer::connect(gateway.listener()).await;
    let (mut read, mut write) = peer.into_stream().into_split();
    let sent: Vec<u8> = (0..4_000_000u32).map(|byte| (byte / 11) as u8).collect();
    let sending = tokio::spawn({
        let sent = sent.clone();
        async move {
            write.write_all(&sent).await.unwrap();
            write
        }
    });
    let mut received = vec![0; sent.len()];
    within("all bytes", tokio::io::AsyncReadExt::read_exact(&mut read, &mut received)).await.unwrap();
    assert!(received == sent, "the bytes came back in another order");
    let write = sending.await.unwrap();
    drop(read.reunite(write));
}
