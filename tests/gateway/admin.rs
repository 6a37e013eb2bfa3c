//! The admin port against pages of other sites, other users of the machine, and peers that hold its connections.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use polygate::testing::rollout::{Candidate, Initiator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::admin::ask;
use crate::harness::{Setup, guest, within};

/// Every route but health.
const ROUTES: [(&str, &str); 8] = [
    ("GET", "/metrics"),
    ("GET", "/api/v1/handlers"),
    ("GET", "/api/v1/handlers/h/versions"),
    ("PUT", "/api/v1/handlers/h/versions"),
    ("POST", "/api/v1/handlers/h/versions/1/activate"),
    ("POST", "/api/v1/handlers/h/rollback"),
    ("POST", "/api/v1/handlers/h/promote"),
    ("GET", "/api/v1/tap"),
];

/// Without a token a page of another site reaches no route, whatever headers it adds; health answers everyone.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_reach_no_route() {
    let gateway = Setup::guest("counter").start().await;
    let admin = gateway.admin();
    let own = format!("host: {admin}");
    let component = std::fs::read(guest("counter-pinned")).unwrap();
    for headers in [
        &["host: evil.example", "origin: http://evil.example", "authorization: x"][..],
        &["host: evil.example", "origin: http://evil.example", "authorization: Bearer x"],
        &["host: evil.example", "authorization: x"],
        &["host: evil.example"],
        &[&own, "origin: http://evil.example", "authorization: x"],
        &[&own, "origin: null"],
        &[&own, "sec-fetch-site: cross-site"],
        &[&own, "sec-fetch-site: same-site"],
    ] {
        for (method, path) in ROUTES {
            let body = if method == "PUT" { &component[..] } else { b"" };
            assert_eq!(ask(admin, method, path, headers, body).await.status, 403, "{method} {path} {headers:?}");
        }
        for path in ["/live", "/ready"] {
            assert_eq!(ask(admin, "GET", path, headers, b"").await.status, 200, "{path} {headers:?}");
        }
    }
    assert_eq!(gateway.handlers().list_versions("h").unwrap().len(), 1);
    let browser = [&*own, "sec-fetch-site: none"];
    assert_eq!(ask(admin, "GET", "/metrics", &browser, b"").await.status, 200);
}

/// By default a token is generated, in a file that only the gateway's user can read; it alone opens every route.
#[tokio::test(flavor = "multi_thread")]
async fn the_generated_token_keeps_other_users_out() {
    let gateway = Setup::guest("counter").data_dir("data_dir = \"data\"").admin("").start().await;
    let admin = gateway.admin();
    let file = gateway.data_dir().join("admin.token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let token = format!("authorization: Bearer {}", std::fs::read_to_string(&file).unwrap().trim_end());
    for (method, path) in ROUTES {
        for header in ["x-nothing: 1", "authorization: x", "authorization: Bearer x", "authorization: Bearer "] {
            assert_eq!(ask(admin, method, path, &[header], b"").await.status, 401, "{method} {path} {header}");
        }
        let cross_site = [&*token, "sec-fetch-site: cross-site"];
        assert_eq!(ask(admin, method, path, &cross_site, b"").await.status, 403, "{method} {path}");
    }
    // With the token a proxy may name the port.
    let named = [&*token, "host: gw.example"];
    assert_eq!(ask(admin, "GET", "/metrics", &named, b"").await.status, 200);
    assert_eq!(ask(admin, "GET", "/ready", &[], b"").await.status, 200);
}

/// Peers that hold every connection with half a request delay neither a health check nor the operator, and each of
/// them is closed in the end.
#[tokio::test(flavor = "multi_thread")]
async fn half_requests_delay_no_one() {
    let gateway = Setup::guest("counter").admin("token = \"a-token-of-the-test\"").start().await;
    let admin = gateway.admin();
    let mut halves = Vec::new();
    for _ in 0..200 {
        halves.push(half_request(admin).await);
    }
    assert_eq!(ask(admin, "GET", "/ready", &[], b"").await.status, 200);
    let token = "authorization: Bearer a-token-of-the-test";
    assert_eq!(ask(admin, "GET", "/api/v1/handlers", &[token], b"").await.status, 200);
    // The oldest ones made room; the others reach the deadline of the head.
    for mut half in halves {
        let mut rest = Vec::new();
        // A reset is an end too.
        let ended = within("the end of a half request", half.read_to_end(&mut rest)).await;
        assert!(ended.is_err() || rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
    }
}

/// An operator with an open tap keeps the connection while others fill the port.
#[tokio::test(flavor = "multi_thread")]
async fn a_tap_outlives_a_flood() {
    let gateway = Setup::guest("counter").admin("token = \"a-token-of-the-test\"").start().await;
    let admin = gateway.admin();
    let mut tap = TcpStream::connect(admin).await.unwrap();
    let request =
        format!("GET /api/v1/tap HTTP/1.1\r\nhost: {admin}\r\nauthorization: Bearer a-token-of-the-test\r\n\r\n");
    tap.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    within("the head of the tap", tap.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let mut halves = Vec::new();
    for _ in 0..100 {
        halves.push(half_request(admin).await);
    }
    assert_eq!(ask(admin, "GET", "/live", &[], b"").await.status, 200);
    let mut device = gateway.connect().await;
    device.send("x").await;
    device.expect("1:1\n").await;
    let mut seen = Vec::new();
    while !seen.windows(4).any(|window| window == b"\"x\"\n") {
        assert_ne!(within("the tapped bytes", tap.read_buf(&mut seen)).await.unwrap(), 0, "the tap has ended");
    }
}

/// A caller that is dropped at any point of a change leaves either the old state or the new one: what runs is what the
/// index says.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_no_half_change() {
    let gateway = Setup::guest("counter").data_dir("data_dir = \"data\"").start().await;
    let pinned: bytes::Bytes = std::fs::read(guest("counter-pinned")).unwrap().into();
    let initiator = Initiator::Admin("127.0.0.1:1".parse().unwrap());
    for polls in 0..24 {
        let handlers = gateway.handlers();
        let candidate = Candidate::Component(pinned.clone());
        {
            let swap = std::pin::pin!(handlers.swap("h", candidate, None, true, initiator));
            let mut swap = futures::future::FutureExt::fuse(swap);
            for _ in 0..polls {
                // Polled, not awaited: it is dropped at the await point that this number of polls reaches.
                let polled = futures::poll!(&mut swap);
                if polled.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // A change of the same handler is behind the dropped one.
        let last = handlers.swap("h", Candidate::Component(pinned.clone()), None, false, initiator).await.unwrap();
        let index = std::fs::read_to_string(gateway.data_dir().join("versions/h/index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["active"], handlers.list()[0].active, "after {polls} polls, and {last:?}");
        assert_eq!(index["next"], u64::from(last.version) + 1);
    }
    // The first poll starts the change, and each started one has come to its end.
    assert_ne!(gateway.handlers().list()[0].active, 1);
}

/// The same over the wire: the connection ends in the middle of the swap.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_in_the_middle_of_a_swap() {
    let gateway = Setup::guest("counter").data_dir("data_dir = \"data\"").start().await;
    let pinned = std::fs::read(guest("counter-pinned")).unwrap();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(gateway.admin()).await.unwrap();
        let (host, length) = (gateway.admin(), pinned.len());
        let head =
            format!("PUT /api/v1/handlers/h/versions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&pinned).await.unwrap();
        drop(stream);
        let last = ask(gateway.admin(), "PUT", "/api/v1/handlers/h/versions?activate=false", &[], &pinned).await;
        assert_eq!(last.status, 201, "{last:?}");
        let index = std::fs::read_to_string(gateway.data_dir().join("versions/h/index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["active"], gateway.handlers().list()[0].active);
    }
}

async fn half_request(admin: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    stream
}
