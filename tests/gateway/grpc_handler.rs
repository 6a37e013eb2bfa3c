//! What a gRPC handler can rely on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use polygate::testing::exproto::proto;
use proto::ResultCode;
use tokio::sync::Notify;
use tonic::Status;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response};

use crate::harness::echo_device::EchoDevice;
use crate::harness::mqtt::MqttClient;
use crate::harness::scripted_handler::{Callback, Event, Proxy, ScriptedHandler, Serves, Transport, authentication};
use crate::harness::{Setup, within};

/// A server that does nothing by itself.
async fn quiet() -> ScriptedHandler {
    ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await
}

/// Fifty devices talk at once: each one's events come in order, one at a time, the first and the last too.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_connection_are_serial_and_in_order() {
    const DEVICES: usize = 50;
    const WRITES: usize = 40;
    let in_flight = Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let in_flight = Arc::clone(&in_flight);
        move |callback, calls| {
            let in_flight = Arc::clone(&in_flight);
            async move {
                assert!(in_flight.lock().unwrap().insert(callback.conn.clone()), "two events at once");
                tokio::task::yield_now().await;
                if let Event::Bytes(bytes) = callback.event {
                    calls.send_ok(&callback.conn, bytes).await;
                }
                assert!(in_flight.lock().unwrap().remove(&callback.conn));
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());

    let mut devices = tokio::task::JoinSet::new();
    for device in 0..DEVICES {
        let mut peer = gateway.connect().await;
        devices.spawn(async move {
            let mut sent = String::new();
            for write in 0..WRITES {
                let text = format!("{device}:{write};");
                peer.send(&text).await;
                sent.push_str(&text);
            }
            peer.expect(&sent).await;
            peer.shutdown().await;
            peer.expect_closed().await;
            sent
        });
    }
    let mut sent: Vec<String> = within("all devices", devices.join_all()).await;

    let mut lives: std::collections::HashMap<String, (String, bool)> = std::collections::HashMap::new();
    while lives.values().filter(|(_, closed)| *closed).count() < DEVICES {
        let Callback { conn, event } = handler.next().await;
        match event {
            Event::Created(_) => assert!(lives.insert(conn, (String::new(), false)).is_none()),
            Event::Bytes(bytes) => {
                let (text, closed) = lives.get_mut(&conn).expect("bytes before the first event");
                assert!(!*closed, "bytes after the last event");
                text.push_str(std::str::from_utf8(&bytes).unwrap());
            }
            Event::Closed(reason) => {
                assert_eq!(reason, "{shutdown,tcp_closed}");
                lives.get_mut(&conn).unwrap().1 = true;
            }
            Event::Timer | Event::Messages(_) => panic!("unexpected {event:?}"),
        }
    }
    let mut received: Vec<String> = lives.into_values().map(|(text, _)| text).collect();
    sent.sort();
    received.sort();
    assert_eq!(received, sent);
}

/// While a callback runs, its connection is served: what it sends reaches the device before it returns.
#[tokio::test(flavor = "multi_thread")]
async fn adapter_calls_are_served_during_a_callback() {
    let release = Arc::new(Notify::new());
    let handler = ScriptedHandler::start(Serves::Unary, {
        let release = Arc::clone(&release);
        move |callback, calls| {
            let release = Arc::clone(&release);
            async move {
                if let Event::Bytes(_) = callback.event {
                    calls.authenticate_ok(&callback.conn, "device-1").await;
                    calls.send_ok(&callback.conn, "working").await;
                    release.notified().await;
                    calls.send_ok(&callback.conn, "done").await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    peer.send("go").await;
    peer.expect("working").await;
    release.notify_one();
    peer.expect("done").await;
}

/// Sends made at once, without waiting for one another's answers, wait for a slow peer together; none is refused.
#[tokio::test(flavor = "multi_thread")]
async fn sends_at_once_wait_for_the_peer() {
    const SENDS: usize = 12;
    const BYTES: usize = 1 << 20;
    let mut handler = quiet().await;
    let gateway = Setup::grpc(&handler).listener("outbound_max = \"4KiB\"").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    let conn = handler.next_created().await;
    let calls = handler.calls();
    let sends = (0..SENDS).map(|_| calls.send_ok(&conn, vec![7; BYTES]));
    let ((), received) = tokio::join!(
        async {
            futures::future::join_all(sends).await;
        },
        peer.receive(SENDS * BYTES)
    );
    assert!(received.iter().all(|byte| *byte == 7));
}

/// The codes of EXPROTO's table, one by one.
#[tokio::test(flavor = "multi_thread")]
async fn result_codes() {
    let mut handler = quiet().await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    let conn = handler.next_created().await;
    let calls = handler.calls();
    let is = |answer: proto::CodeResponse, code: ResultCode, word: &str| {
        assert_eq!(answer.code(), code, "{answer:?}");
        assert!(answer.message.contains(word), "{answer:?} does not say {word:?}");
    };
    let publish = |topic: &str, qos| proto::PublishRequest {
        conn: conn.clone(),
        topic: topic.to_owned(),
        qos,
        payload: "x".into(),
    };
    let subscribe = |topic: &str, qos| proto::SubscribeRequest { conn: conn.clone(), topic: topic.to_owned(), qos };
    let unsubscribe = |topic: &str| proto::UnsubscribeRequest { conn: conn.clone(), topic: topic.to_owned() };
    let timer = |kind, interval| proto::TimerRequest { conn: conn.clone(), r#type: kind, interval };

    // Before Authenticate.
    is(calls.publish(publish("t", 0)).await, ResultCode::PermissionDeny, "Authenticate");
    is(calls.subscribe(subscribe("t", 0)).await, ResultCode::PermissionDeny, "Authenticate");
    is(calls.unsubscribe(unsubscribe("t")).await, ResultCode::PermissionDeny, "Authenticate");
    is(calls.start_timer(timer(0, 60)).await, ResultCode::Success, "");
    calls.send_ok(&conn, "early").await;
    peer.expect("early").await;

    // A conn that is not ours, or not any more.
    let send = |conn: &str| proto::SendBytesRequest { conn: conn.to_owned(), bytes: "x".into() };
    is(calls.send(send("nonsense")).await, ResultCode::ParamsTypeError, "nonsense");
    let answer = calls.send(send(&"é".repeat(1 << 20))).await;
    assert!(answer.message.len() < 200, "the refusal repeats {} bytes", answer.message.len());
    is(answer, ResultCode::ParamsTypeError, "é");
    is(calls.send(send("00000000000000ff")).await, ResultCode::ConnProcessNotAlive, "conn");

    // Arguments.
    is(
        calls.authenticate(proto::AuthenticateRequest { conn: conn.clone(), ..Default::default() }).await,
        ResultCode::RequiredParamsMissed,
        "clientinfo",
    );
    is(calls.authenticate(authentication(&conn, "")).await, ResultCode::RequiredParamsMissed, "clientid");
    is(calls.authenticate(authentication(&conn, &"x".repeat(65_536))).await, ResultCode::ParamsTypeError, "65536");
    is(calls.start_timer(timer(0, 0)).await, ResultCode::ParamsTypeError, "interval");
    is(calls.start_timer(timer(7, 60)).await, ResultCode::ParamsTypeError, "7");

    // After it.
    calls.authenticate_ok(&conn, "device-1").await;
    is(calls.authenticate(authentication(&conn, "device-2")).await, ResultCode::PermissionDeny, "device-1");
    is(calls.publish(publish("t", 3)).await, ResultCode::ParamsTypeError, "got 3");
    is(calls.publish(publish("a/#", 0)).await, ResultCode::ParamsTypeError, "#");
    is(calls.publish(publish("", 0)).await, ResultCode::ParamsTypeError, "topic");
    is(calls.publish(publish(&"x".repeat(65_536), 0)).await, ResultCode::ParamsTypeError, "65");
    is(calls.publish(publish("t", 2)).await, ResultCode::Success, "");
    is(calls.subscribe(subscribe("a/#/b", 0)).await, ResultCode::ParamsTypeError, "#");
    is(calls.subscribe(subscribe("$share/g", 0)).await, ResultCode::ParamsTypeError, "$share");
    is(calls.subscribe(subscribe("a/+", 3)).await, ResultCode::ParamsTypeError, "got 3");
    is(calls.unsubscribe(unsubscribe("never/subscribed")).await, ResultCode::Success, "");
    let raw = |topic: &str, qos| proto::RawPublishRequest { topic: topic.to_owned(), qos, payload: "x".into() };
    is(calls.raw_publish(raw("t/+", 0)).await, ResultCode::ParamsTypeError, "+");
    is(calls.raw_publish(raw("t", 0)).await, ResultCode::Success, "");

    // The connection has lived through all of it, and ends by Close.
    calls.send_ok(&conn, "late").await;
    peer.expect("late").await;
    is(calls.close(proto::CloseSocketRequest { conn: conn.clone() }).await, ResultCode::Success, "");
    peer.expect_closed().await;
    handler.next_closed().await;
    is(calls.send(send(&conn)).await, ResultCode::ConnProcessNotAlive, "conn");
}

/// Calls from inside of the last callback are answered at once: the connection is gone.
#[tokio::test(flavor = "multi_thread")]
async fn calls_from_the_last_callback() {
    let (tell, mut reported) = tokio::sync::mpsc::channel(1);
    let handler = ScriptedHandler::start(Serves::Unary, move |callback, calls| {
        let tell = tell.clone();
        async move {
            if let Event::Closed(_) = callback.event {
                let answer = calls.send(proto::SendBytesRequest { conn: callback.conn, bytes: "x".into() }).await;
                tell.send(answer.code()).await.unwrap();
            }
            Ok(())
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    drop(gateway.connect().await);
    assert_eq!(within("the answer", reported.recv()).await, Some(ResultCode::ConnProcessNotAlive));
}

/// What a device sent before it went is handled before the handler hears of the end, however slow it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_is_handled_before_the_end() {
    let release = Arc::new(Notify::new());
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let release = Arc::clone(&release);
        move |callback, _| {
            let release = Arc::clone(&release);
            async move {
                if matches!(&callback.event, Event::Bytes(bytes) if bytes == "first") {
                    release.notified().await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    let mut peer = gateway.connect().await;
    handler.next_created().await;
    peer.send("first").await;
    assert!(matches!(handler.next().await.event, Event::Bytes(_)));
    peer.send("second").await;
    drop(peer);
    release.notify_one();
    let event = handler.next().await.event;
    assert!(matches!(&event, Event::Bytes(bytes) if bytes == "second"), "{event:?}");
    assert_eq!(handler.next_closed().await, "{shutdown,tcp_closed}");
}

/// The newest connection with a client id wins; the older one ends as discarded.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_client_id_again() {
    let mut handler = ScriptedHandler::echo(Serves::Unary).await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut first = EchoDevice::login(gateway.listener(), "device-1").await;
    let mut second = EchoDevice::login(gateway.listener(), "device-1").await;
    first.expect_closed().await;
    assert_eq!(handler.next_closed().await, "{shutdown,discarded}");

    assert_eq!(second.subscribe("dn").await["code"], 0);
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    client.publish("dn", "for the second").await;
    assert_eq!(second.receive().await["payload"], "for the second");
}

/// Messages that come while the handler is busy reach it together, in order.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_batched() {
    let release = Arc::new(Notify::new());
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let release = Arc::clone(&release);
        move |callback, calls| {
            let release = Arc::clone(&release);
            async move {
                if let Event::Bytes(bytes) = &callback.event {
                    if bytes == "subscribe" {
                        calls.authenticate_ok(&callback.conn, "device-1").await;
                        let request =
                            proto::SubscribeRequest { conn: callback.conn.clone(), topic: "dn/#".to_owned(), qos: 1 };
                        assert_eq!(calls.subscribe(request).await.code, 0);
                        calls.send_ok(&callback.conn, "ok").await;
                    } else {
                        release.notified().await;
                    }
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).handler("messages_per_call = 1000").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    peer.send("subscribe").await;
    peer.expect("ok").await;
    peer.send("be busy").await;
    while !matches!(&handler.next().await.event, Event::Bytes(bytes) if bytes == "be busy") {}

    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    for number in 0..10 {
        client.publish(&format!("dn/{number}"), number.to_string()).await;
    }
    gateway.metric_reaches("polygate_queued_messages{listener=\"l\"}", 10.0).await;
    release.notify_one();
    let Event::Messages(messages) = handler.next().await.event else { panic!("no messages") };
    let topics: Vec<_> = messages.iter().map(|message| message.topic.as_str()).collect();
    assert_eq!(topics, (0..10).map(|number| format!("dn/{number}")).collect::<Vec<_>>());
    let first = &messages[0];
    assert_eq!(
        (first.node.as_str(), first.from.as_str(), first.qos, first.payload.as_ref()),
        ("test", "app", 1, &b"0"[..])
    );
    assert_eq!(first.id.len(), 32);
    assert!(first.timestamp > 1_700_000_000_000);
}

/// More messages than may wait are shed and counted; the connection and the newest commands live on.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_messages_is_shed() {
    let release = Arc::new(Notify::new());
    let mut handler = ScriptedHandler::start(Serves::Unary, {
        let release = Arc::clone(&release);
        move |callback, calls| {
            let release = Arc::clone(&release);
            async move {
                if let Event::Bytes(_) = &callback.event {
                    calls.authenticate_ok(&callback.conn, "device-1").await;
                    let request =
                        proto::SubscribeRequest { conn: callback.conn.clone(), topic: "dn".to_owned(), qos: 0 };
                    assert_eq!(calls.subscribe(request).await.code, 0);
                    calls.send_ok(&callback.conn, "ok").await;
                    release.notified().await;
                    calls.send_ok(&callback.conn, "alive").await;
                }
                Ok(())
            }
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).listener("messages_max = 10").start().await;
    handler.use_adapter(gateway.adapter());
    let mut peer = gateway.connect().await;
    peer.send("subscribe").await;
    peer.expect("ok").await;
    let mut client = MqttClient::connect(gateway.broker(), "app").await;
    for number in 0..50 {
        client.publish("dn", number.to_string()).await;
    }
    gateway.metric_reaches("polygate_dropped_total{listener=\"l\",reason=\"messages_full\"}", 40.0).await;
    release.notify_one();
    peer.expect("alive").await;
    let mut got = Vec::new();
    while got.len() < 10 {
        if let Event::Messages(messages) = handler.next().await.event {
            got.extend(messages.iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap()));
        }
    }
    assert_eq!(got, (0..10).map(|number| number.to_string()).collect::<Vec<_>>(), "the oldest are kept, in order");
}

/// A handler that does not answer in time loses the connection, which ends for that reason.
#[tokio::test(flavor = "multi_thread")]
async fn call_timeout() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |callback, _| async move {
        if let Event::Bytes(_) = callback.event {
            std::future::pending::<()>().await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).handler("call_timeout = \"200ms\"").start().await;
    let mut peer = gateway.connect().await;
    peer.send("x").await;
    peer.expect_closed().await;
    let reason = handler.next_closed().await;
    assert!(reason.starts_with("{shutdown,{error,{on_received_bytes,"), "{reason}");
    assert!(reason.contains("no answer within 200 ms"), "{reason}");
    gateway.metric_reaches("polygate_handler_failures_total{listener=\"l\",handler=\"h\",kind=\"timeout\"}", 1.0).await;
}

/// Every kind of failure has its name.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_apart() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, _| async move {
        match &callback.event {
            Event::Bytes(bytes) if bytes == "internal" => Err(Status::internal("broken")),
            Event::Bytes(bytes) if bytes == "unavailable" => Err(Status::unavailable("busy")),
            Event::Bytes(bytes) if bytes == "unimplemented" => Err(Status::unimplemented("no")),
            _ => Ok(()),
        }
    })
    .await;
    let gateway = Setup::grpc(&handler).handler("on_failure = \"close\"").start().await;
    for (text, kind) in [("internal", "fault"), ("unavailable", "unavailable"), ("unimplemented", "unfit")] {
        let mut peer = gateway.connect().await;
        peer.send(text).await;
        peer.expect_closed().await;
        let line = format!("polygate_handler_failures_total{{listener=\"l\",handler=\"h\",kind=\"{kind}\"}}");
        gateway.metric_reaches(&line, 1.0).await;
    }
}

/// A server that dies while it handles an event is unavailable, which is not a fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_a_call_is_unavailable() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |callback, _| async move {
        if let Event::Bytes(_) = callback.event {
            std::future::pending::<()>().await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).handler("on_failure = \"close\"").start().await;
    let mut peer = gateway.connect().await;
    handler.next_created().await;
    peer.send("x").await;
    assert!(matches!(handler.next().await.event, Event::Bytes(_)));
    handler.kill().await;
    peer.expect_closed().await;
    gateway
        .metric_exceeds("polygate_handler_failures_total{listener=\"l\",handler=\"h\",kind=\"unavailable\"}", 0.0)
        .await;
}

/// Nobody listens where the handler should be: the device is let go, and the next one finds the handler
/// that has been started since, without a restart of the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_come_later_and_be_restarted() {
    let handler = quiet().await;
    let port = handler.port();
    handler.kill().await;
    let gateway = Setup::grpc_at(&format!("http://localhost:{port}")).handler("on_failure = \"close\"").start().await;
    let mut peer = gateway.connect().await;
    peer.expect_closed().await;
    gateway
        .metric_exceeds("polygate_handler_failures_total{listener=\"l\",handler=\"h\",kind=\"unavailable\"}", 0.0)
        .await;

    // Another service at the same place each time: what was found out is forgotten with the connection.
    for serves in [Serves::Unary, Serves::Streaming, Serves::UnaryConnectionHandler] {
        let transport = Transport { port, ..Transport::default() };
        let handler = ScriptedHandler::echo_on(transport, serves).await;
        handler.use_adapter(gateway.adapter());
        let mut device = within("a device to be served again", async {
            loop {
                let mut device = EchoDevice::connect(gateway.listener()).await;
                let connect = serde_json::json!({"type": 1, "clientinfo": {"clientid": "device-1"}});
                device.send(&connect).await;
                if device.peer().read_some().await.is_ok_and(|bytes| !bytes.is_empty()) {
                    break device;
                }
            }
        })
        .await;
        assert_eq!(device.publish("up", "served").await["code"], 0, "{serves:?}");
        handler.kill().await;
    }
}

/// What a proxy answers for a server that is away tells nothing of which service the server has.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_not_taken_for_the_server() {
    let away = AtomicBool::new(true);
    let proxy: Proxy =
        Box::new(move |_| away.swap(false, Ordering::SeqCst).then(|| StatusCode::BAD_GATEWAY.into_response()));
    let transport = Transport { proxy: Some(proxy), ..Transport::default() };
    let handler = ScriptedHandler::echo_on(transport, Serves::Streaming).await;
    // One HTTP/2 connection, which outlives the refusal.
    let gateway = Setup::grpc(&handler).handler("channels = 1\non_failure = \"close\"").start().await;
    handler.use_adapter(gateway.adapter());
    gateway.connect().await.expect_closed().await;
    gateway
        .metric_exceeds("polygate_handler_failures_total{listener=\"l\",handler=\"h\",kind=\"unavailable\"}", 0.0)
        .await;
    EchoDevice::login(gateway.listener(), "device-1").await;
}

/// Another server behind the same HTTP/2 connection may have the other service: it is found out again.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_gone_is_looked_for_again() {
    let replaced = Arc::new(AtomicBool::new(false));
    let proxy: Proxy = Box::new({
        let replaced = Arc::clone(&replaced);
        move |path| {
            let lacks = replaced.load(Ordering::SeqCst) && path.contains("ConnectionUnaryHandler");
            lacks.then(|| Status::unimplemented("no such service").into_http())
        }
    });
    let transport = Transport { proxy: Some(proxy), ..Transport::default() };
    let handler = ScriptedHandler::echo_on(transport, Serves::Both).await;
    let gateway = Setup::grpc(&handler).handler("channels = 1").start().await;
    handler.use_adapter(gateway.adapter());
    let mut device = EchoDevice::login(gateway.listener(), "device-1").await;
    replaced.store(true, Ordering::SeqCst);
    assert_eq!(device.publish("up", "still served").await["code"], 0);
}

/// A thousand devices that speak in the same moment are all served: the calls wait for one another instead of
/// making either HTTP/2 server take them for an attack.
#[tokio::test(flavor = "multi_thread")]
async fn many_devices_at_once() {
    let handler = ScriptedHandler::start(Serves::Unary, |callback, calls| async move {
        if let Event::Bytes(bytes) = callback.event {
            calls.send_ok(&callback.conn, bytes).await;
        }
        Ok(())
    })
    .await;
    let gateway = Setup::grpc(&handler).start().await;
    handler.use_adapter(gateway.adapter());
    let mut peers = Vec::new();
    for _ in 0..1000 {
        peers.push(gateway.connect().await);
    }
    for _ in 0..3 {
        for peer in &mut peers {
            peer.send("at once").await;
        }
        for peer in &mut peers {
            peer.expect("at once").await;
        }
    }
}

/// With more than one HTTP/2 connection, devices are spread over them.
#[tokio::test(flavor = "multi_thread")]
async fn urls_are_balanced() {
    let (first, second) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counting = |count: &Arc<AtomicUsize>| {
        let count = Arc::clone(count);
        move |callback: Callback, _| {
            if matches!(callback.event, Event::Created(_)) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            async { Ok(()) }
        }
    };
    let one = ScriptedHandler::start(Serves::Unary, counting(&first)).await;
    let other = ScriptedHandler::start(Serves::Unary, counting(&second)).await;
    let gateway = Setup::grpc_many(&[one.url(), other.url()]).start().await;
    let mut peers = Vec::new();
    for _ in 0..10 {
        peers.push(gateway.connect().await);
    }
    crate::harness::eventually("ten devices are known", || {
        first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst) == 10
    })
    .await;
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (5, 5));
}

/// Standard tools find the adapter: health says that it serves, reflection names its services.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let gateway = Setup::guest("echo").start().await;
    let address = format!("http://{}", gateway.adapter());
    let channel = tonic::transport::Channel::from_shared(address).unwrap().connect().await.unwrap();
    let service = "emqx.exproto.v1.ConnectionAdapter".to_owned();
    let answer =
        HealthClient::new(channel.clone()).check(HealthCheckRequest { service: service.clone() }).await.unwrap();
    assert_eq!(answer.into_inner().status(), health_check_response::ServingStatus::Serving);

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.unwrap().message_response else {
        panic!("no list of services")
    };
    assert!(list.service.iter().any(|found| found.name == service));
}

/// The adapter on https turns away a caller without a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn the_adapter_asks_for_a_certificate() {
    let certificates = crate::harness::certificates::Certificates::new();
    let (certificate, key) = certificates.sign("localhost");
    let ca = certificates.ca_file();
    let gateway = Setup::guest("echo")
        .adapter(&format!("tls = {{ cert_file = {certificate:?}, key_file = {key:?}, client_ca_file = {ca:?} }}"))
        .start()
        .await;
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(std::fs::read(&ca).unwrap()))
        .domain_name("localhost");
    let endpoint = tonic::transport::Channel::from_shared(format!("https://{}", gateway.adapter()))
        .unwrap()
        .tls_config(tls)
        .unwrap();
    let mut client = proto::connection_adapter_client::ConnectionAdapterClient::new(endpoint.connect_lazy());
    let call = client.close(proto::CloseSocketRequest { conn: String::new() });
    assert!(tokio::time::timeout(Duration::from_secs(10), call).await.unwrap().is_err());
}
