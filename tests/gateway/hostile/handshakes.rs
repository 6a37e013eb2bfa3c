//! Attacks with TLS handshakes that do not go on.

use std::net::Ipv4Addr;

use crate::harness::Setup;
use crate::harness::peer::RawPeer;
use crate::harness::transport::Transport;

/// While one address holds sockets open by the hundred, silent or stuck, and opens more, a device of another address
/// gets its handshake and is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_served_while_one_address_floods_with_handshakes() {
    for begin in [&b""[..], &[22, 3, 1, 2, 0, 1]] {
        // The deadline would free the places in ten minutes: it is not what serves the device.
        let gateway = Setup::guest("echo")
            .over(Transport::mutual_tls())
            .listener("handshake_timeout = \"10m\"\nhandshakes_max = 128")
            .start()
            .await;
        let mut flood = Vec::new();
        for _ in 0..400 {
            let mut peer = RawPeer::connect_from(Ipv4Addr::new(127, 0, 0, 9), gateway.listener()).await;
            peer.send(begin).await;
            flood.push(peer);
        }
        let mut device = gateway.device().await;
        device.log_in("device-1").await;
        drop(flood);
    }
}
