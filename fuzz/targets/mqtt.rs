//! Any bytes to the MQTT server, after no CONNECT or a valid one, cut anywhere: it answers with packets that a client can read,
//! gives an error as the reason when it ends the connection, and lets go of the peer when the stream ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::auth::{Auth, Options as AuthOptions};
use polygate::testing::conn::PeerAddr;
use polygate::testing::mqtt::decode::Decoder;
use polygate::testing::mqtt::{Packet, Reason, Version};
use polygate::testing::pubsub::embedded::{Broker, Options};
use polygate::testing::telemetry::Telemetry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// What comes before the bytes of the input, and the version in which the answers are read.
const BEGINNINGS: [(&[u8], Version); 4] = [
    (b"", Version::V5),
    (b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c", Version::V311),
    (b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01c", Version::V5),
    // With a session expiry, a Receive Maximum of 1 and a Topic Alias Maximum of 2.
    (b"\x10\x19\x00\x04MQTT\x05\x02\x00\x00\x0b\x11\x00\x00\x00\x09\x21\x00\x01\x22\x00\x02\x00\x01c", Version::V5),
];

fuzz_target!(|input: &[u8]| {
    let Some(([beginning, cut], packets)) = input.split_first_chunk::<2>() else { return };
    let (connect, version) = BEGINNINGS[usize::from(beginning % 4)];
    RUNTIME.with(|runtime| runtime.block_on(play(connect, version, usize::from(*cut).max(1), packets)));
});

async fn play(connect: &[u8], version: Version, cut: usize, packets: &[u8]) {
    let auth = Auth::new(AuthOptions { allow_anonymous: true, ..AuthOptions::default() }).expect("no file is read");
    let options = Options { inflight_max: 4, subscriptions_max: 8, packet_bytes_max: 2_048, ..Options::default() };
    let broker = Broker::start(options, auth, &Telemetry::new(), None).await.expect("no socket is bound");
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut answers, mut requests) = tokio::io::split(near);
    let peer = PeerAddr("192.0.2.1:4711".parse().expect("an address"));
    let sending = async {
        for part in [connect].into_iter().chain(packets.chunks(cut)) {
            // The server may have ended the connection.
            if requests.write_all(part).await.is_err() {
                break;
            }
        }
        drop(requests.shutdown().await);
    };
    let reading = async {
        let mut bytes = Vec::new();
        drop(answers.read_to_end(&mut bytes).await);
        bytes
    };
    let ((), (), bytes) = tokio::join!(broker.serve(far, peer), sending, reading);

    // Without a valid CONNECT the answer is in the version of the peer, which is not known here.
    if !connect.is_empty() {
        let mut decoder = Decoder::client(version, 1 << 20);
        decoder.push(&bytes);
        let mut first = true;
        while let Some(packet) = decoder.next_packet().expect("a client can read what the server sends") {
            match packet {
                Packet::ConnAck(connack) => assert!(first && connack.reason == Reason::SUCCESS),
                Packet::Disconnect(disconnect) => assert!(disconnect.reason.is_error(), "{disconnect:?}"),
                _ => assert!(!first, "CONNACK comes first"),
            }
            first = false;
        }
        assert!(!first, "a valid CONNECT is answered");
    }
    broker.shutdown().await;
    assert_eq!(broker.stats().subscriptions, 0);
}
