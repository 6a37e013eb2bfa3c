//! Signals, and connections that do not end.

use rustix::process::Signal;
use tokio::net::TcpListener;

use crate::program::{Device, Serving, Setup, messages, within};

/// Ctrl-C is as good as SIGTERM.
#[tokio::test]
async fn interrupted() {
    let serving = Setup::echo().served().await;
    serving.signal(Signal::INT);
    let (code, log) = serving.ended().await;
    assert_eq!(code, Some(0));
    assert_eq!(messages(&log).last().unwrap(), "stopped");
}

/// A signal that comes before everything is built ends the process in order as well.
#[tokio::test]
async fn interrupted_while_starting() {
    let mut serving = Setup::guest("jt808", "").serve(&["--log-format", "json"]);
    serving.line("engines for guests ready").await;
    let (code, log) = serving.stop().await;
    assert_eq!(code, Some(0));
    // The guest may have been compiled just before the signal came.
    let last = messages(&log).pop().unwrap();
    assert!(["stopped before the gateway had started", "stopped"].contains(&&*last), "{log:#?}");
}

/// Connections that have not ended when the drain timeout is over are cut off, and the exit code says so.
#[tokio::test]
async fn cut_off() {
    let (serving, _device) = with_a_connection_that_does_not_end("100ms").await;
    let (code, log) = serving.stop().await;
    assert_eq!(code, Some(1));
    let messages = messages(&log);
    assert!(messages.contains(&"drain timeout passed; closing the remaining connections".to_owned()), "{log:#?}");
    assert_eq!(messages.last().unwrap(), "stopped");
}

/// Who does not want to wait for the drain timeout asks again.
#[tokio::test]
async fn a_second_signal() {
    let (mut serving, _device) = with_a_connection_that_does_not_end("1h").await;
    serving.signal(Signal::TERM);
    serving.line("stopping").await;
    serving.signal(Signal::TERM);
    let (code, log) = serving.ended().await;
    assert_eq!(code, Some(1));
    // The connections that it cuts off may have a line after it.
    let reported = "stopped by a second signal, before the connections had ended".to_owned();
    assert!(messages(&log).contains(&reported), "{log:#?}");
}

/// The handler takes the TCP connection, and never says a word.
async fn with_a_connection_that_does_not_end(drain_timeout: &str) -> (Serving, Device) {
    let handler = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serving = Setup::with_gateway(
        &format!("drain_timeout = {drain_timeout:?}"),
        &format!(
            "[adapter]\nbind = \"127.0.0.1:0\"\n[handlers.h]\nkind = \"grpc\"\nurl = \"http://{}\"\ncall_timeout = \"10m\"\n\
             [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]\n",
            handler.local_addr().unwrap()
        ),
    )
    .served()
    .await;
    let device = Device::connect(serving.listener()).await;
    let (silence, _) = within("the gateway's call", handler.accept()).await.unwrap();
    tokio::spawn(async move {
        let _open = (handler, silence);
        std::future::pending::<()>().await;
    });
    (serving, device)
}
