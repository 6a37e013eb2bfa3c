//! What happens when a handler fails: each cell of the table, from one kind of handler to the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use polygate::testing::exproto::proto;
use proto::ResultCode;
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::peer::RawPeer;
use crate::harness::scripted_handler::{Calls, Event, ScriptedHandler, Serves, Transport};
use crate::harness::{GatewayUnderTest, Setup, eventually};

/// A guest that traps gets a fresh instance and the event once more; then the server takes over. It is told of the
/// connection, gets the event that failed, and the rest in order, and the device notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn fault_of_a_guest_to_a_server() {
    let mut next = echo().await;
    let gateway = Setup::guest("trap").then_grpc("next", &next).start().await;
    next.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("before").await;
    device.expect("before").await;

    device.send("trap").await;
    device.expect("trap").await;
    device.send("after").await;
    device.expect("after").await;

    let conn = next.next_created().await;
    for expected in ["trap", "after"] {
        let callback = next.next().await;
        assert_eq!(callback.conn, conn);
        assert!(matches!(callback.event, Event::Bytes(bytes) if bytes == expected));
    }
    recovered(&gateway, "h", &[("fault", 2)], &[("renew", 1), ("fall_back", 1)]).await;
}

/// A guest that uses its CPU time up is not entered again with the same event: the next handler gets it.
#[tokio::test(flavor = "multi_thread")]
async fn timeout_of_a_guest_to_a_server() {
    let next = echo().await;
    let gateway = Setup::guest("forever").handler("event_timeout = \"50ms\"").then_grpc("next", &next).start().await;
    next.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("forever").await;
    device.expect("forever").await;
    recovered(&gateway, "h", &[("timeout", 1)], &[("fall_back", 1)]).await;
}

/// A server that nobody can reach is waited for; then the guest takes over, and the device gets its answer.
#[tokio::test(flavor = "multi_thread")]
async fn unavailable_server_to_a_guest() {
    let gone = echo().await;
    let url = gone.url();
    gone.kill().await;
    let gateway = Setup::grpc_at(&url).handler("hold_timeout = \"120ms\"").then_guest("next", "trap").start().await;
    let mut device = gateway.connect().await;
    device.send("hello").await;
    device.expect("hello").await;
    recovered(&gateway, "h", &[], &[("fall_back", 1)]).await;
}

/// A server that comes back within the hold timeout gets the event that was held, and what waited behind it, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_gets_what_was_held() {
    let handler = echo().await;
    let port = handler.port();
    let gateway = Setup::grpc(&handler).then_guest("next", "trap").start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("before").await;
    device.expect("before").await;
    // Until the call itself has returned, its event would be delivered again.
    gateway.metric_reaches(&handled("on_received_bytes"), 1.0).await;

    handler.kill().await;
    device.send("held,").await;
    gateway.metric_exceeds(&recoveries("h", "hold"), 0.0).await;
    device.send("waited").await;
    let handler = echo_at(port).await;
    handler.use_adapter(gateway.adapter());
    device.expect("held,waited").await;
    assert_eq!(gateway.metric(&recoveries("h", "fall_back")), 0.0);
}

/// Under load from many devices, a server is killed and started again, twice: no device loses its socket, and each
/// gets the answer to every byte, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_under_load_loses_no_device() {
    const DEVICES: usize = 50;
    const ROUNDS: usize = 60;
    let mut handler = echo().await;
    let port = handler.port();
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());

    let rounds = Arc::new(AtomicUsize::new(0));
    let mut devices = tokio::task::JoinSet::new();
    for device in 0..DEVICES {
        let mut peer = gateway.connect().await;
        let rounds = Arc::clone(&rounds);
        devices.spawn(async move {
            let (mut sent, mut got) = (String::new(), String::new());
            for round in 0..ROUNDS {
                let line = format!("{device}:{round};");
                peer.send(&line).await;
                sent += &line;
                // An event that the server had answered when it was cut off is delivered, and answered, again.
                while !got.ends_with(&line) {
                    got += std::str::from_utf8(&peer.read_some().await.unwrap()).unwrap();
                    assert!(!got.is_empty(), "device {device} lost its socket");
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            (sent, got)
        });
    }
    for restart in 1..=2 {
        eventually("a third of the rounds", || rounds.load(Ordering::Relaxed) > restart * DEVICES * ROUNDS / 3).await;
        handler.kill().await;
        handler = echo_at(port).await;
        handler.use_adapter(gateway.adapter());
    }
    while let Some(ended) = devices.join_next().await {
        let (sent, got) = ended.unwrap();
        let mut once: Vec<&str> = got.split_terminator(';').collect();
        let answers = once.len();
        once.dedup();
        assert_eq!(once, sent.split_terminator(';').collect::<Vec<_>>());
        assert!(answers - once.len() <= 2, "more than the event in flight at each restart came twice");
    }
    assert_eq!(gateway.metric("polygate_closes_total{listener=\"l\",reason=\"handler_failed\"}"), 0.0);
}

/// A server that does not answer in time loses the connection to the guest. What it asks for afterwards is refused: it
/// is not its connection any more, so the device gets no second answer.
#[tokio::test(flavor = "multi_thread")]
async fn timeout_of_a_server_to_a_guest() {
    let (go_on, refused) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mut slow = ScriptedHandler::start(Serves::Unary, {
        let (go_on, refused) = (Arc::clone(&go_on), Arc::clone(&refused));
        move |callback, calls| {
            let (go_on, refused) = (Arc::clone(&go_on), Arc::clone(&refused));
            async move {
                if let Event::Bytes(bytes) = callback.event {
                    // On its own: the call itself is cancelled when the gateway gives it up.
                    tokio::spawn(async move {
                        go_on.notified().await;
                        let request = proto::SendBytesRequest { conn: callback.conn, bytes };
                        assert_eq!(calls.send(request).await.code, i32::from(ResultCode::ConnProcessNotAlive));
                        refused.notify_one();
                    });
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&slow).handler("call_timeout = \"50ms\"").then_guest("next", "trap").start().await;
    slow.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    slow.next_created().await;
    device.send("once").await;
    device.expect("once").await;

    go_on.notify_one();
    refused.notified().await;
    device.send("and on").await;
    device.expect("and on").await;
    recovered(&gateway, "h", &[("timeout", 1)], &[("fall_back", 1)]).await;
}

/// A server that answers with an error is asked once more, as one that is new to the connection; a server that had lost
/// what it knew goes on with that.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_a_fresh_start_cures() {
    let forgot = Arc::new(AtomicBool::new(true));
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let forgot = Arc::clone(&forgot);
        move |callback, calls| {
            let forgot = Arc::clone(&forgot);
            async move {
                match callback.event {
                    Event::Bytes(_) if forgot.swap(false, Ordering::SeqCst) => Err(Status::unknown("who is that?")),
                    Event::Bytes(bytes) => {
                        calls.send_ok(&callback.conn, bytes).await;
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("hello").await;
    device.expect("hello").await;

    let conn = handler.next_created().await;
    assert!(matches!(handler.next().await.event, Event::Bytes(_)));
    assert_eq!(handler.next_created().await, conn, "it is the same connection");
    assert!(matches!(handler.next().await.event, Event::Bytes(_)));
    recovered(&gateway, "h", &[("fault", 1)], &[("renew", 1)]).await;
}

/// A server that answers with an error twice loses the connection to the guest.
#[tokio::test(flavor = "multi_thread")]
async fn fault_of_a_server_to_a_guest() {
    let broken = failing(|| Status::internal("broken")).await;
    let gateway = Setup::grpc(&broken).then_guest("next", "trap").start().await;
    let mut device = gateway.connect().await;
    device.send("hello").await;
    device.expect("hello").await;
    recovered(&gateway, "h", &[("fault", 2)], &[("renew", 1), ("fall_back", 1)]).await;
}

/// A server that does not speak the interface loses the connection at once, and gets no other until a probe finds it
/// well.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_server_is_passed_over() {
    let mut unfit = failing(|| Status::unimplemented("no such callback")).await;
    let gateway = Setup::grpc(&unfit).then_guest("next", "trap").start().await;
    let mut device = gateway.connect().await;
    unfit.next_created().await;
    device.send("hello").await;
    device.expect("hello").await;
    recovered(&gateway, "h", &[("unfit", 1)], &[("fall_back", 1)]).await;
    gateway.metric_reaches("polygate_handler_healthy{handler=\"h\"}", 0.0).await;

    let mut next = gateway.connect().await;
    next.send("hello").await;
    next.expect("hello").await;
    recovered(&gateway, "h", &[("unfit", 1)], &[]).await;
}

/// A chain of three: a server that nobody can reach, a guest that traps, a server that works.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_three() {
    let gone = echo().await;
    let url = gone.url();
    gone.kill().await;
    let last = echo().await;
    let gateway = Setup::grpc_at(&url)
        .handler("hold_timeout = \"50ms\"")
        .then_guest("second", "trap")
        .then_grpc("last", &last)
        .start()
        .await;
    last.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    for text in ["one", "trap", "three"] {
        device.send(text).await;
        device.expect(text).await;
    }
    recovered(&gateway, "h", &[], &[("fall_back", 1)]).await;
    recovered(&gateway, "second", &[("fault", 2)], &[("renew", 1), ("fall_back", 1)]).await;
}

/// Without another handler the connection ends, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_handler_is_the_end() {
    let gateway = Setup::guest("trap").start().await;
    let mut device = gateway.connect().await;
    device.send("trap").await;
    device.expect_closed().await;
    recovered(&gateway, "h", &[("fault", 2)], &[("renew", 1), ("give_up", 1)]).await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"handler_failed\"}", 1.0).await;
    let undelivered = "polygate_undelivered_events_total{listener=\"l\",handler=\"h\",event=\"on_socket_closed\"}";
    gateway.metric_reaches(undelivered, 1.0).await;
    assert_eq!(gateway.metric(&failures("h", "unavailable")), 0.0, "what had failed was not asked once more");
}

/// Who the device is, what it subscribed to and its keepalive stay with the connection. The next handler may say once
/// more who it is, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn identity_subscriptions_and_timers_stay() {
    let first = ScriptedHandler::start(Serves::Unary, |callback, calls: Calls| async move {
        match callback.event {
            Event::Created(_) => {
                calls.authenticate_ok(&callback.conn, "tracker-1").await;
                let filter = proto::SubscribeRequest { conn: callback.conn.clone(), topic: "down".into(), qos: 1 };
                assert_eq!(calls.subscribe(filter).await.code, 0);
                let timer = proto::TimerRequest { conn: callback.conn.clone(), r#type: 0, interval: 1 };
                assert_eq!(calls.start_timer(timer).await.code, 0);
                calls.send_ok(&callback.conn, "ready").await;
                Ok(())
            }
            Event::Bytes(_) => std::future::pending().await,
            _ => Ok(()),
        }
    })
    .await;
    let mut second = ScriptedHandler::start(Serves::Unary, |callback, calls: Calls| async move {
        match callback.event {
            Event::Bytes(_) => {
                let other = crate::harness::scripted_handler::authentication(&callback.conn, "somebody else");
                let denied = calls.authenticate(other).await;
                assert_eq!(denied.code, i32::from(ResultCode::PermissionDeny));
                calls.send_ok(&callback.conn, "served").await;
            }
            Event::Created(_) => calls.authenticate_ok(&callback.conn, "tracker-1").await,
            Event::Messages(messages) => calls.send_ok(&callback.conn, messages[0].payload.clone()).await,
            Event::Timer | Event::Closed(_) => {}
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&first).handler("call_timeout = \"500ms\"").then_grpc("second", &second).start().await;
    first.use_adapter(gateway.adapter());
    second.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.expect("ready").await;
    device.send("break").await;
    device.expect("served").await;

    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.publish("down", "for the device").await;
    device.expect("for the device").await;
    assert_eq!(second.next_closed().await, "{shutdown,keepalive_timeout}");
}

/// A handler that keeps failing gets no new connections; one that has recovered gets them again, by a probe.
#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_trips_and_recovers() {
    let gone = echo().await;
    let (url, port) = (gone.url(), gone.port());
    gone.kill().await;
    let gateway = Setup::grpc_at(&url).handler("hold_timeout = \"1ms\"").then_guest("next", "trap").start().await;
    let healthy = "polygate_handler_healthy{handler=\"h\"}";
    assert_eq!(gateway.metric(healthy), 1.0);
    while gateway.metric(healthy) == 1.0 {
        served(&mut gateway.connect().await).await;
    }
    assert_eq!(gateway.metric("polygate_handler_breaker_opened_total{handler=\"h\"}"), 1.0);
    let failures_then = gateway.metric(&failures("h", "unavailable"));
    for _ in 0..10 {
        served(&mut gateway.connect().await).await;
    }
    assert_eq!(gateway.metric(&failures("h", "unavailable")), failures_then, "nobody asked it any more");

    let mut handler = echo_at(port).await;
    handler.use_adapter(gateway.adapter());
    gateway.metric_reaches(healthy, 1.0).await;
    served(&mut gateway.connect().await).await;
    handler.next_created().await;
}

/// A guest that leaks is given a fresh instance with its state before its memory is used up, again and again; nothing
/// fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_leaks() {
    let gateway = Setup::guest("leak").handler("memory_max = \"8MiB\"").start().await;
    let mut device = gateway.connect().await;
    for count in 1..=30 {
        device.send("x").await;
        device.expect(format!("{count}\n")).await;
    }
    assert!(gateway.metric(&recoveries("h", "replace")) >= 4.0);
    assert_eq!(gateway.metric(&failures("h", "fault")), 0.0);
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 1.0).await;
}

/// Two devices share an instance. A trap costs both what the instance knew of them, and neither its socket: each is
/// introduced to the next instance.
#[tokio::test(flavor = "multi_thread")]
async fn a_trap_in_a_shared_instance() {
    let last = echo().await;
    let gateway = Setup::guest("trap").handler("isolation = { shared = 1 }").then_grpc("last", &last).start().await;
    last.use_adapter(gateway.adapter());
    let [mut culprit, mut other] = [gateway.connect().await, gateway.connect().await];
    served(&mut culprit).await;
    served(&mut other).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 1.0).await;

    culprit.send("trap").await;
    culprit.expect("trap").await;
    served(&mut other).await;
    gateway.metric_reaches("polygate_instances{handler=\"h\"}", 1.0).await;
    recovered(&gateway, "h", &[("fault", 2)], &[("renew", 1), ("fall_back", 1)]).await;
    assert_eq!(gateway.metric("polygate_handler_version_connections{handler=\"h\",version=\"1\"}"), 1.0);
}

/// Many devices at few instances: each one's bytes come back to it and to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn shared_instances_serve_many() {
    let gateway = Setup::guest("trap").handler("isolation = { shared = 3 }").start().await;
    let mut devices = Vec::new();
    for _ in 0..40 {
        devices.push(gateway.connect().await);
    }
    for round in 0..5 {
        for (number, device) in devices.iter_mut().enumerate() {
            device.send(format!("{number} in {round}")).await;
        }
        for (number, device) in devices.iter_mut().enumerate() {
            device.expect(format!("{number} in {round}")).await;
        }
    }
    assert_eq!(gateway.metric("polygate_instances{handler=\"h\"}"), 3.0);
}

/// A server that is cut off after it has said who the device is says so again when the event comes again, and is
/// believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_was_cut_off_is_made_again() {
    let cut_off = Arc::new(AtomicBool::new(true));
    let handler = ScriptedHandler::start(Serves::Unary, {
        let cut_off = Arc::clone(&cut_off);
        move |callback, calls: Calls| {
            let cut_off = Arc::clone(&cut_off);
            async move {
                if let Event::Bytes(_) = callback.event {
                    calls.authenticate_ok(&callback.conn, "tracker-1").await;
                    if cut_off.swap(false, Ordering::SeqCst) {
                        return Err(Status::unavailable("going down"));
                    }
                    calls.send_ok(&callback.conn, "welcome").await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("login").await;
    device.expect("welcome").await;
    recovered(&gateway, "h", &[("unavailable", 1)], &[("hold", 1)]).await;
}

/// The same with a guest that serves many: a device may log in again at the instance that does not know it.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_at_the_next_shared_instance() {
    let gateway = Setup::guest("echo").handler("isolation = { shared = 1 }\nmemory_max = \"1536KiB\"").start().await;
    let mut device = EchoDevice::login(gateway.listener(), "tracker-1").await;
    let mut culprit = gateway.connect().await;
    // A request that takes more memory than there is.
    culprit.send(format!("{{\"type\":3,\"payload\":\"{}\"}}", "x".repeat(1_000_000))).await;
    gateway.metric_exceeds(&failures("h", "fault"), 0.0).await;

    let login = json!({ "type": 1, "clientinfo": { "proto_name": "echo", "clientid": "tracker-1" } });
    assert_eq!(device.ask(login).await, json!({ "type": 2, "code": 0 }));
}

/// A handler that fails with every event of every device is taken out, although it greets each of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_does_not_make_a_handler_well() {
    let gateway =
        Setup::guest("trap").then_guest("next", "echo").handler("settings = { mode = \"raw\" }").start().await;
    for _ in 0..3 {
        let mut device = gateway.connect().await;
        device.send("trap").await;
        device.expect("trap").await;
    }
    assert_eq!(gateway.metric("polygate_handler_breaker_opened_total{handler=\"h\"}"), 1.0);
}

/// What a server asked for before it lost the connection, and what nobody has looked at yet, is not done either.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_handler_has_asked_for_is_refused() {
    const FULL: usize = 12 << 20;
    let (tell, mut reported) = mpsc::channel(1);
    let first = Arc::new(AtomicBool::new(true));
    let broken = ScriptedHandler::start(Serves::Unary, move |callback, calls: Calls| {
        let (tell, first) = (tell.clone(), Arc::clone(&first));
        async move {
            let Event::Bytes(_) = callback.event else { return Ok(()) };
            if first.swap(false, Ordering::SeqCst) {
                // The device does not read yet: what is asked for after this waits.
                calls.send_ok(&callback.conn, vec![b'-'; FULL]).await;
                let late = proto::SendBytesRequest { conn: callback.conn, bytes: "too late".into() };
                let waits = calls.clone();
                tokio::spawn(async move { tell.send(waits.send(late).await.code).await });
            }
            // By the same way, and answered without the connection.
            let aside = proto::RawPublishRequest { topic: "aside".into(), qos: 0, payload: Bytes::new() };
            assert_eq!(calls.raw_publish(aside).await.code, 0);
            Err(Status::internal("broken"))
        }
    })
    .await;
    let mut next = echo().await;
    let gateway = Setup::grpc(&broken).listener("outbound_max = \"4KiB\"").then_grpc("next", &next).start().await;
    broken.use_adapter(gateway.adapter());
    next.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("hello").await;
    next.next_created().await;

    assert!(device.receive(FULL).await.iter().all(|byte| *byte == b'-'));
    device.expect("hello").await;
    assert_eq!(reported.recv().await, Some(i32::from(ResultCode::ConnProcessNotAlive)));
}

/// A handler that closes and then fails has closed: nobody takes over a connection that is to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_not_recovered_from() {
    let closing = ScriptedHandler::start(Serves::Unary, |callback, calls: Calls| async move {
        if let Event::Bytes(_) = callback.event {
            let close = proto::CloseSocketRequest { conn: callback.conn };
            assert_eq!(calls.close(close).await.code, 0);
            return Err(Status::internal("broken"));
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&closing).then_guest("next", "trap").start().await;
    closing.use_adapter(gateway.adapter());
    let mut device = gateway.connect().await;
    device.send("hello").await;
    device.expect_closed().await;
    gateway.metric_reaches("polygate_closes_total{listener=\"l\",reason=\"handler_asked\"}", 1.0).await;
    for action in ["renew", "fall_back"] {
        assert_eq!(gateway.metric(&recoveries("h", action)), 0.0, "{action}");
    }
}

/// A guest that does not take its own state back goes on as it is, and is not asked for it after every event.
#[tokio::test(flavor = "multi_thread")]
async fn a_worn_instance_that_cannot_be_replaced() {
    // Every event takes twelve of sixteen pages, if they are there, and answers how many snapshots there were.
    let module = r#"(module
        (import "polygate:handler/adapter@0.1.0" "send" (func $send (param i64 i32 i32 i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "\01")
        (data (i32.const 64) "0")
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
        (func (export "polygate:handler/handler@0.1.0#on-socket-created")
            (param i64 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32))
        (func (export "polygate:handler/handler@0.1.0#on-received-bytes") (param i64 i32 i32)
            (drop (memory.grow (i32.const 12)))
            (call $send (local.get 0) (i32.const 64) (i32.const 1) (i32.const 32)))
        (func (export "polygate:handler/handler@0.1.0#on-timer-timeout") (param i64 i32))
        (func (export "polygate:handler/handler@0.1.0#on-received-messages") (param i64 i32 i32))
        (func (export "polygate:handler/handler@0.1.0#on-socket-closed") (param i64 i32 i32 i32))
        (func (export "polygate:handler/migrate@0.1.0#snapshot") (param i64) (result i32)
            (i32.store8 (i32.const 64) (i32.add (i32.load8_u (i32.const 64)) (i32.const 1)))
            i32.const 48)
        (func (export "polygate:handler/migrate@0.1.0#restore") (param i32) (result i32) i32.const 16))"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("worn.wasm");
    std::fs::write(&file, wat::parse_str(module).unwrap()).unwrap();
    let gateway = Setup::guest(file.to_str().unwrap()).handler("memory_max = \"1MiB\"").start().await;
    let mut device = gateway.connect().await;
    for snapshots in ["0", "1", "1", "1"] {
        device.send("x").await;
        device.expect(snapshots).await;
    }
}

/// A device whose event is held for a server that is away goes on with the one that the operator puts in its place.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_goes_to_the_next_version() {
    let away = echo().await;
    let url = away.url();
    away.kill().await;
    let gateway = Setup::grpc_at(&url).start().await;
    let mut device = gateway.connect().await;
    device.send("hello").await;
    gateway.metric_exceeds(&recoveries("h", "hold"), 0.0).await;

    let next = echo().await;
    next.use_adapter(gateway.adapter());
    gateway.reload(&url, &next.url()).await.unwrap();
    device.expect("hello").await;
}

/// A server that sends everything back.
async fn echo() -> ScriptedHandler {
    echo_at(0).await
}

async fn echo_at(port: u16) -> ScriptedHandler {
    let transport = Transport { port, ..Transport::default() };
    ScriptedHandler::start_on(transport, Serves::Unary, |callback, calls: Calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await
}

/// A server that answers bytes with an error.
async fn failing(status: impl Fn() -> Status + Send + Sync + 'static) -> ScriptedHandler {
    ScriptedHandler::start(Serves::Unary, move |callback, _| {
        let answer = if matches!(callback.event, Event::Bytes(_)) { Err(status()) } else { Ok(()) };
        async move { answer }
    })
    .await
}

async fn served(device: &mut RawPeer) {
    device.send("hello").await;
    device.expect("hello").await;
}

fn failures(handler: &str, kind: &str) -> String {
    format!("polygate_handler_failures_total{{listener=\"l\",handler=\"{handler}\",kind=\"{kind}\"}}")
}

fn handled(event: &str) -> String {
    format!("polygate_event_seconds_count{{listener=\"l\",handler=\"h\",event=\"{event}\"}}")
}

fn recoveries(handler: &str, action: &str) -> String {
    format!("polygate_recoveries_total{{listener=\"l\",handler=\"{handler}\",action=\"{action}\"}}")
}

/// So many failures of each kind were met with so many actions.
async fn recovered(gateway: &GatewayUnderTest, handler: &str, kinds: &[(&str, u32)], actions: &[(&str, u32)]) {
    for (kind, count) in kinds {
        gateway.metric_reaches(&failures(handler, kind), (*count).into()).await;
    }
    for (action, count) in actions {
        gateway.metric_reaches(&recoveries(handler, action), (*count).into()).await;
    }
}
