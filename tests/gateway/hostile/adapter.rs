//! Attacks on the adapter port, from a program that can reach it.

use polygate::testing::exproto::proto;
use proto::ResultCode;

use crate::harness::Setup;
use crate::harness::echo_device::EchoDevice;
use crate::harness::scripted_handler::{Calls, ScriptedHandler, Serves, authentication};

/// The codes of every operation on a connection.
async fn codes(calls: &Calls, conn: &str) -> Vec<ResultCode> {
    let conn = conn.to_owned();
    let topic = "t".to_owned();
    let mut client = calls.client().await;
    let answers = [
        client.send(proto::SendBytesRequest { conn: conn.clone(), bytes: "x".into() }).await,
        client.authenticate(authentication(&conn, "intruder")).await,
        client.start_timer(proto::TimerRequest { conn: conn.clone(), r#type: 0, interval: 1 }).await,
        client
            .publish(proto::PublishRequest { conn: conn.clone(), topic: topic.clone(), qos: 0, payload: "x".into() })
            .await,
        client.subscribe(proto::SubscribeRequest { conn: conn.clone(), topic: topic.clone(), qos: 0 }).await,
        client.unsubscribe(proto::UnsubscribeRequest { conn: conn.clone(), topic }).await,
        client.close(proto::CloseSocketRequest { conn }).await,
    ];
    answers.into_iter().map(|answer| answer.unwrap().into_inner().code()).collect()
}

/// A handler that knows the id of a guest's connection can neither send to it, nor authenticate it, nor close it.
#[tokio::test(flavor = "multi_thread")]
async fn no_handler_commands_the_connection_of_a_guest() {
    let intruder = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::guest("echo").start().await;
    intruder.use_adapter(gateway.adapter());
    let mut device: EchoDevice = gateway.device().await;
    device.log_in("device-1").await;

    let conn = gateway.mailbox().conn().to_string();
    assert_eq!(codes(&intruder.calls(), &conn).await, [ResultCode::ConnProcessNotAlive; 7]);
    let answer = device.publish("t", "still served").await;
    assert_eq!(answer["code"], 0, "{answer}");
}

/// After a fallback from a server to a guest, the server commands the connection by none of its ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_lost_its_connection_to_a_guest_commands_it_no_more() {
    let mut server =
        ScriptedHandler::start(Serves::Unary, |_, _| async { Err(tonic::Status::internal("broken")) }).await;
    let gateway = Setup::grpc(&server).then_guest("g", "echo").start().await;
    server.use_adapter(gateway.adapter());
    let mut device = gateway.device().await;
    let conn = server.next_created().await;
    device.log_in("device-1").await;

    assert_eq!(codes(&server.calls(), &conn).await, [ResultCode::ConnProcessNotAlive; 7]);
    let answer = device.publish("t", "still served").await;
    assert_eq!(answer["code"], 0, "{answer}");
}

/// The ids that one handler sees do not tell it those of other connections: none is next to another.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_does_not_tell_the_next() {
    let mut handler = ScriptedHandler::start(Serves::Unary, |_, _| async { Ok(()) }).await;
    let gateway = Setup::grpc(&handler).start().await;
    let mut peers = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..8 {
        peers.push(gateway.connect().await);
        let conn = handler.next_created().await;
        let id = u64::from_str_radix(&conn, 16).unwrap();
        assert!(id < 1 << 53, "a guest in JavaScript would see another number: {conn}");
        ids.push(id);
    }
    ids.sort_unstable();
    let nearest = ids.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
    assert!(nearest > 1 << 16, "{ids:x?}");
}
