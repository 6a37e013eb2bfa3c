//! Attacks on the adapter port itself: connections and requests that stall.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::scripted_handler::{ScriptedHandler, Serves};
use crate::harness::{Setup, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a Send, in HPACK without Huffman codes and dynamic table.
fn headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(&[0x04][..], &b"/emqx.exproto.v1.ConnectionAdapter/Send"[..]), (&[0x01], b"gateway")] {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value);
    }
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// While clients hold open dozens of requests that announce 15 MiB and stall, other handlers' commands are served,
/// small ones and large ones.
#[tokio::test(flavor = "multi_thread")]
async fn commands_are_served_while_large_requests_stall() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(gateway.adapter()).await.unwrap();
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        for request in 0..20 {
            let stream = 2 * request + 1;
            bytes.extend(frame(1, 4, stream, &headers()));
            let mut data = vec![0];
            data.extend((15_u32 << 20).to_be_bytes());
            data.resize(16 << 10, 0);
            bytes.extend(frame(0, 0, stream, &data));
        }
        client.write_all(&bytes).await.unwrap();
        stalled.push(client);
    }
    let mut device = gateway.connect().await;
    let conn = handler.next_created().await;
    for bytes in [1, 4 << 10, 1 << 20] {
        let calls = handler.calls();
        let send = calls.send_ok(&conn, vec![7; bytes]);
        let ((), received) = tokio::join!(within("a command", send), device.receive(bytes));
        assert!(received.iter().all(|byte| *byte == 7));
    }
}

/// Any number of silent sockets keeps no handler out.
#[tokio::test(flavor = "multi_thread")]
async fn commands_are_served_while_sockets_are_silent() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).adapter("connections_max = 2").start().await;
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut client = TcpStream::connect(gateway.adapter()).await.unwrap();
        // Some begin to speak.
        client.write_all(&PREFACE[..number % PREFACE.len()]).await.unwrap();
        silent.push(client);
    }
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    let conn = handler.next_created().await;
    within("a command", handler.calls().send_ok(&conn, "served")).await;
    device.expect("served").await;
}

/// Connections beyond the maximum are closed, and the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).adapter("connections_max = 1").start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    let conn = handler.next_created().await;
    within("a command", handler.calls().send_ok(&conn, "one")).await;

    let mut client = TcpStream::connect(gateway.adapter()).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    let mut rest = Vec::new();
    let closed = within("the end", tokio::io::AsyncReadExt::read_to_end(&mut client, &mut rest)).await;
    assert!(rest.is_empty(), "{closed:?} {rest:?}");

    within("a command", handler.calls().send_ok(&conn, "two")).await;
    device.expect("onetwo").await;
}
