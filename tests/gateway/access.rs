//! Which addresses may connect.

use std::fs;
use std::net::Ipv4Addr;

use crate::harness::Setup;
use crate::harness::peer::RawPeer;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const DENIED: &str = "polygate_connections_rejected_total{listener=\"l\",reason=\"access\"}";

/// A gateway that gives every byte back at once.
fn raw_echo() -> Setup {
    Setup::guest("echo").handler("settings = { mode = \"raw\" }")
}

/// The first match decides, and a denied peer is disconnected without an event for the handler.
#[tokio::test(flavor = "multi_thread")]
async fn rules_decide_by_address() {
    let gateway =
        raw_echo().listener("access = [\"allow 127.0.0.1\", \"deny 127.0.0.0/8\", \"allow all\"]").start().await;
    let mut allowed = RawPeer::connect_from(ONE, gateway.listener()).await;
    let mut denied = RawPeer::connect_from(TWO, gateway.listener()).await;
    denied.expect_closed().await;
    allowed.send("a").await;
    allowed.expect("a").await;
    gateway.metric_reaches(DENIED, 1.0).await;
    assert_eq!(gateway.metric("polygate_accepted_connections_total{listener=\"l\"}"), 1.0);
}

/// Rules for one family do not touch the other.
#[tokio::test(flavor = "multi_thread")]
async fn families_have_their_own_rules() {
    for (rule, allowed) in [("deny 0.0.0.0/0", true), ("deny ::/64", false), ("deny ::2", true), ("deny all", false)] {
        let gateway = raw_echo().bind("tcp://[::1]:0").listener(&format!("access = [{rule:?}]")).start().await;
        let mut peer = gateway.connect().await;
        match allowed {
            true => {
                peer.send("a").await;
                peer.expect("a").await;
            }
            false => peer.expect_closed().await,
        }
    }
}

/// A list of a hundred thousand addresses goes before the rules; a reload reads it again, and leaves who is connected
/// alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_denies_and_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("deny.txt");
    let others: String = (0..100_000u32).map(|low| format!("{}\n", Ipv4Addr::from(0x0a00_0000 + low * 2))).collect();
    fs::write(&list, format!("# scanners\n{others}127.0.0.2 # here\n")).unwrap();
    let gateway = raw_echo().listener(&format!("deny_file = {list:?}\naccess = [\"allow all\"]")).start().await;

    let mut first = RawPeer::connect_from(ONE, gateway.listener()).await;
    first.send("a").await;
    first.expect("a").await;
    RawPeer::connect_from(TWO, gateway.listener()).await.expect_closed().await;

    fs::write(&list, "127.0.0.1\n").unwrap();
    let reloaded = gateway.reload("[\"allow all\"]", "[\"deny 10.0.0.0/8\"]").await.unwrap();
    assert_eq!(reloaded.needs_restart, Vec::<String>::new());
    RawPeer::connect_from(ONE, gateway.listener()).await.expect_closed().await;
    let mut second = RawPeer::connect_from(TWO, gateway.listener()).await;
    second.send("b").await;
    second.expect("b").await;
    first.send("c").await;
    first.expect("c").await;
    gateway.metric_reaches(DENIED, 2.0).await;
}
