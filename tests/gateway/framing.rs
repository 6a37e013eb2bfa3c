//! What a handler gets of a stream that its listener cuts into frames.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::harness::recorded::{play_all, recorded};
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::{Setup, eventually, within};

const RECEIVED: &str = "polygate_received_bytes_total{listener=\"l\"}";
const UNFRAMED: &str = "polygate_unframed_bytes_total{listener=\"l\"}";
const INBOUND: &str = "polygate_inbound_queue_bytes{listener=\"l\"}";

/// A stream, and the frames that a framing finds in it.
struct Case {
    framing: &'static str,
    stream: &'static [u8],
    frames: &'static [&'static [u8]],
}

const CASES: [Case; 9] = [
    Case {
        framing: r#"{ kind = "length", offset = 2, width = 1, adjust = 2 }"#,
        stream: b"\x78\x78\x01a\r\n\x78\x78\x03bcd\r\n",
        frames: &[b"\x78\x78\x01a\r\n", b"\x78\x78\x03bcd\r\n"],
    },
    Case {
        framing: r#"{ kind = "length", width = 2, order = "little", adjust = -2, deliver = "payload" }"#,
        stream: b"\x03\0a\x02\0\x04\0bc",
        frames: &[b"a", b"", b"bc"],
    },
    Case {
        framing: r#"{ kind = "delimiter", delimiter = '\x03#' }"#,
        stream: b"one\x03#\x03\x03#two\x03#",
        frames: &[b"one", b"\x03", b"two"],
    },
    Case { framing: r#"{ kind = "fixed", size = "3B" }"#, stream: b"onetwo", frames: &[b"one", b"two"] },
    Case { framing: r#"{ kind = "line" }"#, stream: b"one\r\n\ntwo\n", frames: &[b"one", b"", b"two"] },
    Case {
        framing: r#"{ kind = "line", deliver = "wire" }"#,
        stream: b"one\r\n\ntwo\n",
        frames: &[b"one\r\n", b"\n", b"two\n"],
    },
    Case {
        framing: r#"{ kind = "escape", scheme = "jt808" }"#,
        stream: b"??~a\x7d\x02\x7d\x01~~b~c~",
        frames: &[b"a~\x7d", b"b", b"c"],
    },
    Case {
        framing: r#"{ kind = "escape", scheme = "hdlc" }"#,
        stream: b"~a\x7d\x5e\x7d\x5d~b~",
        frames: &[b"a~\x7d", b"b"],
    },
    Case {
        framing: r#"{ kind = "escape", scheme = "jt808", deliver = "wire" }"#,
        stream: b"??~a\x7d\x02~b~",
        frames: &[b"~a\x7d\x02~", b"~b~"],
    },
];

/// One whole frame is one event, in order, whether the stream comes at once or in two pieces, wherever it is cut.
#[tokio::test(flavor = "multi_thread")]
async fn every_frame_is_an_event() {
    let mut handler = silent_handler().await;
    for Case { framing, stream, frames } in CASES {
        let gateway = framed(&handler, framing).start().await;
        for cut in 0..stream.len() {
            let received = gateway.metric(RECEIVED);
            let mut peer = gateway.connect().await;
            peer.send(&stream[..cut]).await;
            gateway.metric_reaches(RECEIVED, received + cut as f64).await;
            peer.send(&stream[cut..]).await;
            peer.shutdown().await;
            let (events, reason) = story(&mut handler).await;
            assert_eq!(events, frames, "{framing}, cut at {cut}");
            assert_eq!(reason, "{shutdown,tcp_closed}");
        }
    }
}

/// A guest gets frames as a server does.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_frames() {
    let echo = || Setup::guest("echo").handler("settings = { mode = \"raw\" }");
    let gateway = echo().listener("framing = { kind = \"line\" }").start().await;
    let mut peer = gateway.connect().await;
    peer.send("one\r\n\r\ntwo\nthr").await;
    peer.expect("onetwo").await;
    peer.send("ee\n").await;
    peer.expect("three").await;
}

/// Two hundred devices that send their frames byte by byte hold up nobody: after every byte of each another device is
/// served. They take the room of their bytes, and each frame comes whole.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_send_byte_by_byte() {
    const SLOW: usize = 200;
    let echo = Setup::guest("echo").handler("settings = { mode = \"raw\" }");
    let gateway = echo.listener("framing = { kind = \"line\" }").start().await;
    let mut slow = Vec::new();
    for number in 0..SLOW {
        slow.push((gateway.connect().await, format!("meter {number:03}\n")));
    }
    let mut other = gateway.connect().await;
    let last = slow[0].1.len() - 1;
    for at in 0..last {
        for (peer, line) in &mut slow {
            peer.send(&line[at..=at]).await;
        }
        // So each byte is a read of its own.
        gateway.metric_reaches(INBOUND, (SLOW * (at + 1)) as f64).await;
        other.send("quick\n").await;
        other.expect("quick").await;
    }
    for (peer, line) in &mut slow {
        peer.send(&line[last..]).await;
        peer.expect(&line[..last]).await;
    }
    gateway.metric_reaches(INBOUND, 0.0).await;
}

/// A handler that cuts its stream itself goes on as before when it gets the frames as they came.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_reads_the_wire_gets_it() {
    let gateway = Setup::guest("jt808")
        .handler("settings = { auth_code = \"tour\" }")
        .listener("framing = { kind = \"escape\", scheme = \"jt808\", deliver = \"wire\" }")
        .start()
        .await;
    play_all(&gateway, &recorded("examples/conversations/jt808")).await;
}

/// What is no frame ends the connection in order, and the handler is told why, after the frames before it; the peer's
/// own end, right behind it, is not the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_frame_ends_the_connection() {
    let mut handler = silent_handler().await;
    let gateway = framed(&handler, r#"{ kind = "length", width = 2, max = "8B" }"#).start().await;
    let mut peer = gateway.connect().await;
    peer.send(b"\0\x01a\0\x02bc\0\x07defghij\0\x01k").await;
    peer.shutdown().await;
    let (events, reason) = story(&mut handler).await;
    assert_eq!(events, [&b"\0\x01a"[..], b"\0\x02bc"]);
    assert_eq!(reason, r#"{shutdown,{frame_error,"expected a frame of at most 8 bytes, found one of 9"}}"#);
    peer.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"framing_broken\"}", 1.0).await;
    assert_eq!(gateway.metric(UNFRAMED), 12.0);

    // One that goes on sending is ended too, and not reset under what it was sent.
    let mut peer = gateway.connect().await;
    peer.send(vec![0xff; 300_000]).await;
    peer.expect_closed().await;
}

/// The peer's end in the middle of a frame is the end, and what is left is counted.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_frame_is_counted() {
    let mut handler = silent_handler().await;
    let gateway = framed(&handler, r#"{ kind = "line" }"#).start().await;
    let mut peer = gateway.connect().await;
    peer.send("whole\npart").await;
    gateway.metric_reaches(INBOUND, 4.0).await;
    peer.shutdown().await;
    let (events, reason) = story(&mut handler).await;
    assert_eq!((events, reason.as_str()), (vec![b"whole".to_vec()], "{shutdown,tcp_closed}"));
    assert_eq!(gateway.metric(UNFRAMED), 4.0);
    gateway.metric_reaches(INBOUND, 0.0).await;
}

/// Noise between flags costs its bytes and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn noise_between_flags_is_skipped() {
    let mut handler = silent_handler().await;
    let gateway = framed(&handler, r#"{ kind = "escape", scheme = "jt808", max = "8B" }"#).start().await;
    let mut peer = gateway.connect().await;
    peer.send("noise~one~a very long frame~two~\x7dwrong~three~").await;
    for frame in ["one", "two", "three"] {
        assert_eq!(next_bytes(&mut handler).await, frame.as_bytes());
    }
    assert_eq!(gateway.metric(UNFRAMED), 5.0 + 17.0 + 6.0);
}

/// Silence ends a frame; so does the end of the stream, and nothing else does, however many reads it takes.
#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_a_frame() {
    let mut handler = silent_handler().await;
    let gateway = framed(&handler, r#"{ kind = "gap", silence = "20ms" }"#).start().await;
    let mut peer = gateway.connect().await;
    for frame in ["\x01\x03\x02\x00\x6b", "\x01\x03\x02\x00\x6c"] {
        peer.send(frame).await;
        assert_eq!(next_bytes(&mut handler).await, frame.as_bytes());
    }
    drop(peer);
    assert_eq!(handler.next_closed().await, "{shutdown,tcp_closed}");

    let gateway = framed(&handler, r#"{ kind = "gap", silence = "1m", max = "8B" }"#).start().await;
    let mut peer = gateway.connect().await;
    for (part, received) in [("ab", 2.0), ("cd", 4.0)] {
        peer.send(part).await;
        gateway.metric_reaches(RECEIVED, received).await;
    }
    assert_eq!(gateway.metric(INBOUND), 4.0);
    peer.shutdown().await;
    let (events, reason) = story(&mut handler).await;
    assert_eq!((events, reason.as_str()), (vec![b"abcd".to_vec()], "{shutdown,tcp_closed}"));

    let mut peer = gateway.connect().await;
    peer.send("too many bytes").await;
    peer.shutdown().await;
    assert_eq!(story(&mut handler).await.0, Vec::<Vec<u8>>::new());
    assert_eq!(gateway.metric(UNFRAMED), 14.0);
}

/// A changed framing is that of the devices which connect from then on; the others keep theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_framing_is_for_new_connections() {
    let mut handler = silent_handler().await;
    let gateway = framed(&handler, r#"{ kind = "line" }"#).start().await;
    let mut before = gateway.connect().await;
    handler.next_created().await;
    gateway.reload(r#"kind = "line""#, r#"kind = "fixed", size = "3B""#).await.unwrap();
    let mut after = gateway.connect().await;
    handler.next_created().await;
    after.send("onetwo").await;
    for frame in ["one", "two"] {
        assert_eq!(next_bytes(&mut handler).await, frame.as_bytes());
    }
    before.send("onetwo\n").await;
    assert_eq!(next_bytes(&mut handler).await, b"onetwo");
}

/// A frame may be longer than what may wait for the handler: nothing but reading on could finish it.
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_may_be_longer_than_the_queue() {
    let mut handler = silent_handler().await;
    let gateway =
        framed(&handler, r#"{ kind = "line", max = "1MiB" }"#).listener("inbound_max = \"1KiB\"").start().await;
    let mut peer = gateway.connect().await;
    let mut line = vec![b'x'; (1 << 20) - 1];
    line.push(b'\n');
    peer.send(&line).await;
    line.pop();
    assert!(next_bytes(&mut handler).await == line);
}

/// Frames that wait for a busy handler take the room of their bytes, however small they are, and at the bound the
/// socket is not read; then each of them is an event.
#[tokio::test(flavor = "multi_thread")]
async fn frames_wait_within_the_bound() {
    const FRAMES: usize = 3000;
    let ready = Arc::new(Semaphore::new(0));
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let ready = Arc::clone(&ready);
        move |_, _| {
            let ready = Arc::clone(&ready);
            async move {
                ready.acquire().await.unwrap().forget();
                Ok(())
            }
        }
    })
    .await;
    let gateway =
        framed(&handler, r#"{ kind = "fixed", size = "1KiB" }"#).listener("inbound_max = \"4KiB\"").start().await;
    handler.use_adapter(gateway.adapter());
    let peer = gateway.connect().await;
    let sent = tokio::spawn(async move {
        let mut peer = peer;
        peer.send(vec![7; FRAMES << 10]).await;
        peer
    });
    handler.next_created().await;
    gateway.metric_exceeds(INBOUND, 4095.0).await;
    assert!(gateway.metric(INBOUND) < (4 << 10) as f64 + (64 << 10) as f64);
    ready.add_permits(Semaphore::MAX_PERMITS / 2);
    for _ in 0..FRAMES {
        assert_eq!(next_bytes(&mut handler).await.len(), 1024);
        assert!(gateway.metric(INBOUND) < (4 << 10) as f64 + (64 << 10) as f64);
    }
    drop(within("the peer", sent).await.unwrap());
    eventually("nothing is held", || gateway.metric(INBOUND) == 0.0).await;
}

/// A server that does nothing with what it gets.
async fn silent_handler() -> ScriptedHandler {
    ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await
}

fn framed(handler: &ScriptedHandler, framing: &str) -> Setup {
    Setup::grpc(handler).listener(&format!("framing = {framing}"))
}

/// The bytes of the next event that has some.
async fn next_bytes(handler: &mut ScriptedHandler) -> Vec<u8> {
    loop {
        match handler.next().await.event {
            Event::Bytes(bytes) => return bytes.to_vec(),
            Event::Created(_) | Event::Timer | Event::Messages(_) => {}
            Event::Closed(reason) => panic!("closed: {reason}"),
        }
    }
}

/// What the server got of one connection, and why it ended.
async fn story(handler: &mut ScriptedHandler) -> (Vec<Vec<u8>>, String) {
    let mut events = Vec::new();
    loop {
        match handler.next().await.event {
            Event::Bytes(bytes) => events.push(bytes.to_vec()),
            Event::Created(_) | Event::Timer | Event::Messages(_) => {}
            Event::Closed(reason) => return (events, reason),
        }
    }
}
