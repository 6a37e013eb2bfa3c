//! Attacks on the memory of all connections together.

use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::echo_device::EchoDevice;
use crate::harness::scripted_handler::{Event, ScriptedHandler, Serves};
use crate::harness::{Setup, eventually, guest, within};

/// A peer with small buffers in the kernel.
async fn connect(gateway: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(16 << 10).unwrap();
    within("the connection", socket.connect(gateway)).await.unwrap()
}

/// Devices whose handler stalls send as much as they can: the bytes queued in the gateway stay within `queued_bytes_max` and a
/// little for each device. A device of another handler is served meanwhile, and when the handler goes on, every byte arrives.
#[tokio::test(flavor = "multi_thread")]
async fn stalled_devices_share_a_bound() {
    const DEVICES: usize = 1000;
    const SENT_BYTES: usize = 160 << 10;
    const QUEUED_BYTES_MAX: f64 = (16 << 20) as f64;
    /// A read above half of the bound, in the handler and in the queue.
    const EACH_BYTES: f64 = (2 << 10) as f64;
    let gate = Arc::new(Semaphore::new(0));
    let stalled = Arc::clone(&gate);
    let handler = ScriptedHandler::start(Serves::Unary, move |callback, _| {
        let stalled = Arc::clone(&stalled);
        async move {
            if let Event::Bytes(_) = callback.event {
                // Closed when the handler is to go on.
                drop(stalled.acquire().await);
            }
            Ok(())
        }
    })
    .await;
    let gateway = Setup::grpc(&handler)
        .handler("call_timeout = \"10m\"\nchannels_max = 64")
        .gateway("queued_bytes_max = \"16MiB\"")
        .listener("receive_buffer = \"16KiB\"")
        .more(&format!(
            "[handlers.g]\nkind = \"wasm\"\ncomponent = {:?}\n[listeners.second]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"g\"]",
            guest("echo")
        ))
        .start()
        .await;
    let mut sending = JoinSet::new();
    for _ in 0..DEVICES {
        let mut device = connect(gateway.listener()).await;
        sending.spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut device, &vec![b'x'; SENT_BYTES]).await.unwrap();
            device
        });
    }
    let queued = || gateway.metric("polygate_queued_bytes");
    eventually("reads to be paused", || queued() >= QUEUED_BYTES_MAX / 2.0).await;
    for number in 0..20 {
        let mut device = EchoDevice::login(gateway.listener_named("second"), &format!("device-{number}")).await;
        let answer = device.publish("t", "served").await;
        assert_eq!(answer["code"], 0, "{answer}");
        assert!(queued() <= QUEUED_BYTES_MAX + DEVICES as f64 * EACH_BYTES, "{}", queued());
    }

    gate.close();
    drop(gate);
    let devices = within("every byte to be sent", sending.join_all()).await;
    let received = "polygate_received_bytes_total{listener=\"l\"}";
    gateway.metric_reaches(received, (DEVICES * SENT_BYTES) as f64).await;
    drop(devices);
    gateway.metric_reaches("polygate_connections{listener=\"l\"}", 0.0).await;
    gateway.metric_reaches("polygate_queued_bytes", 0.0).await;
}
