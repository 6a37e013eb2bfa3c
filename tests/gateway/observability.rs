//! What an operator sees.

use polygate::testing::gateway::StartError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{GatewayUnderTest, Setup, within};

/// A plain HTTP GET; gives the status line and the body.
async fn get(gateway: &GatewayUnderTest, path: &str, header: &str) -> (String, String) {
    let mut stream = TcpStream::connect(gateway.admin()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Health, readiness and metrics are where monitoring looks for them.
#[tokio::test(flavor = "multi_thread")]
async fn admin_port() {
    let gateway = Setup::guest("echo").handler("settings = { mode = \"raw\" }").start().await;
    let mut peer = gateway.connect().await;
    peer.send("12345").await;
    peer.expect("12345").await;
    // The answer may arrive before the gateway has counted it.
    gateway.metric_reaches("polygate_sent_bytes_total{listener=\"l\"}", 5.0).await;

    assert_eq!(get(&gateway, "/live", "").await.0, "HTTP/1.1 200 OK");
    assert_eq!(get(&gateway, "/ready", "").await.0, "HTTP/1.1 200 OK");
    let (status, page) = get(&gateway, "/metrics", "").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        "polygate_connections{listener=\"l\"} 1",
        "polygate_accepted_connections_total{listener=\"l\"} 1",
        "polygate_received_bytes_total{listener=\"l\"} 5",
        "polygate_sent_bytes_total{listener=\"l\"} 5",
        "polygate_inbound_queue_bytes{listener=\"l\"} 0",
        "polygate_outbound_queue_bytes{listener=\"l\"} 0",
        "polygate_event_seconds_count{listener=\"l\",handler=\"h\",event=\"on_received_bytes\"} 1",
        "polygate_instances{handler=\"h\"} 1",
        "# EOF",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(gateway.metric("polygate_instance_memory_bytes{handler=\"h\"}") >= 65_536.0);
}

/// With a token, metrics are for those who have it; health is for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn admin_token() {
    let gateway = Setup::guest("echo").admin("token = \"a-token-of-the-test\"").start().await;
    assert_eq!(get(&gateway, "/live", "").await.0, "HTTP/1.1 200 OK");
    assert_eq!(get(&gateway, "/metrics", "").await.0, "HTTP/1.1 401 Unauthorized");
    assert_eq!(get(&gateway, "/metrics", "authorization: Bearer wrong\r\n").await.0, "HTTP/1.1 401 Unauthorized");
    assert_eq!(get(&gateway, "/metrics", "authorization: Bearer a-token-of-the-test\r\n").await.0, "HTTP/1.1 200 OK");
}

/// A gateway that cannot start leaves nothing behind that listens.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_leaves_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let setup = Setup::guest("echo").bind(&format!("tcp://{free}"));
    let error = setup.admin_bind(&taken.local_addr().unwrap().to_string()).try_start().await.err();
    assert!(matches!(error, Some(StartError::Admin(_))), "{error:?}");
    assert!(TcpStream::connect(free).await.is_err(), "the listener accepts");
}
