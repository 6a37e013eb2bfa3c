//! The life of a gateway from its first line of the log to its last.

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Device, Setup, messages};

/// The log tells the whole story in order; each line is one JSON object, and there is nothing else on stderr.
#[tokio::test]
async fn the_story_in_json() {
    let mut serving = Setup::echo().served().await;
    let mut device = Device::connect(serving.listener()).await;
    device.says("hello").await;
    device.gets("hello").await;

    serving.signal(Signal::TERM);
    serving.line("stopping").await;
    device.expect_closed().await;
    let address = serving.listener();
    let (code, log) = serving.ended().await;
    assert_eq!(code, Some(0));
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert_eq!(
        messages(&log),
        [
            "settings read",
            "engines for guests ready",
            "guest loaded",
            "handler ready",
            "handlers ready",
            "MQTT port open",
            "connection limit",
            "accepting",
            "started",
            "stopping",
            "closed",
            "stopped"
        ]
    );

    let field = |message: &str, field: &str| {
        let lines = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.into_iter().find(|line| line["message"] == message).unwrap()[field].clone()
    };
    assert_eq!(field("accepting", "listener"), "l");
    assert_eq!(field("started", "node"), "test");
    assert_eq!(field("stopping", "connections"), 1);
    assert_eq!(field("closed", "received_bytes"), 5);
    assert_eq!(field("closed", "sent_bytes"), 5);
    assert_eq!(field("closed", "reason"), "draining");
}

/// For people: a line has a time, a level, the message and its fields, without colours where no terminal is.
#[tokio::test]
async fn the_story_in_text() {
    let mut serving = Setup::echo().serve(&[]);
    serving.text(" INFO started node=test adapter=127.0.0.1:").await;
    let (code, log) = serving.stop().await;
    assert_eq!(code, Some(0));
    let told: Vec<&str> = log
        .iter()
        .map(|line| {
            assert!(!line.contains('\x1b'), "{line:?}");
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.ends_with('Z'), "{line}");
            rest.trim_start().strip_prefix("INFO ").unwrap_or_else(|| panic!("{line}"))
        })
        .collect();
    for (line, begins) in told.iter().zip([
        "settings read config=",
        "engines for guests ready small_instances_max=262144 large_instances_max=",
        "guest loaded handler=h engine=small instances_max=262144",
        "handler ready handler=h version=1",
        "handlers ready handlers=1",
        "MQTT port open addr=127.0.0.1:",
        "connection limit connections_max=",
        "accepting listener=l transport=tcp address=127.0.0.1:",
        "started node=test adapter=127.0.0.1:",
        "stopping connections=0",
        "stopped",
    ]) {
        assert!(line.starts_with(begins), "expected {begins:?}, found {line:?}");
    }
    assert_eq!(told.len(), 11, "{told:#?}");
}

/// A log that nobody reads any more ends no connection and no gateway.
#[tokio::test]
async fn a_broken_log_harms_nobody() {
    let mut serving = Setup::echo().served().await;
    serving.close_stderr().await;
    for _ in 0..2 {
        let mut device = Device::connect(serving.listener()).await;
        device.says("hello").await;
        device.gets("hello").await;
    }
    assert_eq!(serving.stop().await.0, Some(0));
}

/// Valid but probably unintended settings are logged at the start, as warnings.
#[tokio::test]
async fn warnings_are_logged() {
    let setup = Setup::new(
        "[handlers.a]\nkind = \"grpc\"\nurl = \"http://127.0.0.1:9\"\n[handlers.b]\nkind = \"grpc\"\n\
         url = \"http://127.0.0.1:9\"\n[adapter]\nbind = \"127.0.0.1:0\"\n\
         [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"a\"]\n",
    );
    let (code, log) = setup.served().await.stop().await;
    assert_eq!(code, Some(0));
    let warning = "line 8, handlers.b: no listener uses this handler";
    assert_eq!(messages(&log)[0], warning);
}

/// A low soft limit on descriptors, as shells and old service managers set it, does not bound the devices.
#[tokio::test]
async fn the_descriptor_limit_is_raised() {
    let mut serving = Setup::echo().serve_after("ulimit -Sn 64");
    let line = serving.line("settings read").await;
    assert!(line["descriptors_max"].as_u64().unwrap() > 64, "{line}");
}

/// With less address space there is room for fewer instances, and with little of it guests use mappings; both are
/// logged, and devices are served.
#[tokio::test]
async fn address_space_is_short() {
    const GIB_IN_KIB: u64 = 1 << 20;
    for (gib, warning, small, engine) in [
        (1024, "address space limited: fewer instances on the small engine", Some(32_768), "small"),
        (200, "small engine unavailable: all guests run on the large engine", None, "large"),
    ] {
        let mut serving = Setup::echo().serve_after(&format!("ulimit -v {}", gib * GIB_IN_KIB));
        let line = serving.line(warning).await;
        assert_eq!(line["level"], "WARN");
        let line = serving.line("engines for guests ready").await;
        assert_eq!(line["small_instances_max"].as_u64(), small, "{line}");
        let line = serving.line("guest loaded").await;
        assert_eq!((line["engine"].as_str(), &line["handler"]), (Some(engine), &"h".into()), "{line}");
        serving.line("started").await;
        let mut device = Device::connect(serving.listener()).await;
        device.says("served").await;
        device.gets("served").await;
        assert_eq!(serving.stop().await.0, Some(0));
    }
}

/// A socket that systemd has bound is accepted from, by the listener of its name, also by a gateway that was started
/// anew: meanwhile devices wait in it.
#[tokio::test]
async fn a_socket_is_handed_over() {
    const HAND_OVER: &str = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=l";
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let handed = || std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
    let mut serving = Setup::echo().serve_from(HAND_OVER, handed());
    serving.line("started").await;
    assert_eq!(serving.listener(), address);
    let mut device = Device::connect(address).await;
    device.says("served").await;
    device.gets("served").await;
    drop(device);
    assert_eq!(serving.stop().await.0, Some(0));

    let mut device = Device::connect(address).await;
    device.says("waits").await;
    let mut serving = Setup::echo().serve_from(HAND_OVER, handed());
    device.gets("waits").await;
    drop(device);
    serving.line("started").await;
    assert_eq!(serving.stop().await.0, Some(0));
}

/// Devices beyond the descriptor limit wait in the backlog; the limit is logged at the start, and nothing fails.
#[tokio::test]
async fn devices_without_a_descriptor_wait() {
    let mut serving = Setup::echo().serve_after("ulimit -n 64");
    let line = serving.line("connection limit").await;
    let room = line["connections_max"].as_u64().unwrap();
    assert_eq!(room, 24, "{line}");
    serving.line("started").await;
    let mut devices = Vec::new();
    for _ in 0..room {
        let mut device = Device::connect(serving.listener()).await;
        device.says("served").await;
        device.gets("served").await;
        devices.push(device);
    }
    let mut waiting = Device::connect(serving.listener()).await;
    waiting.says("served").await;
    drop(devices.pop());
    waiting.gets("served").await;
    drop((devices, waiting));
    let (code, log) = serving.stop().await;
    assert_eq!(code, Some(0));
    assert!(!messages(&log).iter().any(|message| message.starts_with("cannot accept")));
}

/// Without descriptors left, devices wait in the backlog and this is logged once; when some are freed, it goes
/// on.
#[tokio::test]
async fn descriptors_run_out_and_come_back() {
    const DEVICES: usize = 100;
    // As if there were descriptors for all of them.
    let mut serving = Setup::echo().gateway("connections_max = 1000").serve_after("ulimit -n 64");
    serving.line("started").await;
    let mut devices = Vec::new();
    for _ in 0..DEVICES {
        devices.push(Device::connect(serving.listener()).await);
    }
    let line = serving.line("cannot accept peers; trying again").await;
    assert_eq!(line["level"], "ERROR");
    // Instances, of which this is the first, need none.
    devices[0].says("first").await;
    devices[0].gets("first").await;

    drop(devices);
    let mut device = Device::connect(serving.listener()).await;
    device.says("served").await;
    device.gets("served").await;
    let (code, log) = serving.stop().await;
    assert_eq!(code, Some(0));
    let told = messages(&log).iter().filter(|message| message.starts_with("cannot accept")).count();
    assert_eq!(told, 1);
}

/// A handler that is away for good fails at each of its devices; the log has some of that, and says how much it left
/// out.
#[tokio::test]
async fn a_flood_of_failures() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = nobody.local_addr().unwrap();
    drop(nobody);
    let setup = Setup::new(&format!(
        "[adapter]\nbind = \"127.0.0.1:0\"\n[handlers.h]\nkind = \"grpc\"\nurl = \"http://{away}\"\nhold_timeout = \"1ms\"\n\
         [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]\n"
    ));
    let mut serving = setup.served().await;
    let listener = serving.listener();
    let mut devices = tokio::task::JoinSet::new();
    for _ in 0..16 {
        devices.spawn(async move {
            loop {
                Device::connect(listener).await.expect_closed().await;
            }
        });
    }
    let told = serving.line("log of handler failures rate-limited").await;
    assert_eq!((&told["level"], &told["handler"]), (&Value::from("WARN"), &Value::from("h")), "{told}");
    assert!(told["left_out"].as_u64() > Some(0), "{told}");
    devices.shutdown().await;
    assert_eq!(serving.stop().await.0, Some(0));
}
