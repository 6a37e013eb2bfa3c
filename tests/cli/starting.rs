//! A gateway that cannot start reports why, once, and exits with 1.

use std::net::TcpListener;

use serde_json::Value;

use crate::program::{Setup, repository, run};

/// A configuration with faults: the whole report, and nothing else.
#[tokio::test]
async fn faults() {
    let file = repository("tests/fixtures/bad/rules.toml");
    let report = run(&["check", "-c", file.to_str().unwrap()]).await.stderr;
    let output = run(&["serve", "-c", file.to_str().unwrap()]).await;
    assert_eq!((output.code, &*output.stdout), (Some(1), ""));
    assert_eq!(output.stderr, report);
    assert!(report.lines().count() > 2, "{report}");

    let output = run(&["serve", "-c", file.to_str().unwrap(), "--log-format", "json"]).await;
    let line: Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!((output.code, &line["level"]), (Some(1), &Value::from("ERROR")));
    assert_eq!(line["message"], report.trim_end());
}

#[tokio::test]
async fn no_file() {
    let output = run(&["serve", "-c", "no/such.toml"]).await;
    assert_eq!((output.code, &*output.stderr), (Some(1), "no/such.toml cannot be read: no such file\n"));
}

/// Each port that is taken is named in one line.
#[tokio::test]
async fn ports_that_are_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let cases = [
        (format!("[listeners.m]\nbind = \"tcp://{address}\""), format!("listener \"m\" on tcp://{address}")),
        (format!("[adapter]\nbind = \"{address}\""), format!("the adapter on {address}")),
        (format!("[admin]\nbind = \"{address}\""), format!("the admin port on {address}")),
        (format!("[broker]\nbind = \"{address}\""), format!("the broker's MQTT port on tcp {address}")),
    ];
    for (table, port) in cases {
        let handlers = if table.starts_with("[listeners") { "\nhandlers = [\"h\"]" } else { "" };
        let setup = Setup::new(&format!(
            "[handlers.h]\nkind = \"wasm\"\ncomponent = {:?}\n\
             [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]\n{table}{handlers}\n",
            repository("guests/dist/echo.wasm")
        ));
        let output = setup.serve_to_the_end(&[]).await;
        assert_eq!((output.code, &*output.stdout), (Some(1), ""));
        let last = output.stderr.lines().last().unwrap();
        assert!(last.ends_with(&format!("ERROR cannot bind {port}: address already in use")), "{}", output.stderr);
        assert!(!output.stderr.contains("accepting"), "a device could have connected: {}", output.stderr);
    }
}

/// A directory that cannot be made.
#[tokio::test]
async fn no_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("polygate.toml");
    std::fs::write(&file, "gateway.data_dir = \"/proc/polygate-data\"\n").unwrap();
    let output = run(&["serve", "-c", file.to_str().unwrap()]).await;
    assert_eq!(output.code, Some(1));
    let reported = "ERROR cannot use \"/proc/polygate-data\" as the data directory: no such file or directory\n";
    assert!(output.stderr.ends_with(reported), "{}", output.stderr);
}

/// A log that cannot be set up is wrong usage.
#[tokio::test]
async fn wrong_log() {
    let file = repository("examples/wasm.toml");
    let output = run(&["serve", "-c", file.to_str().unwrap(), "--log", "polygate=loud"]).await;
    assert_eq!(output.code, Some(2));
    let begins =
        "polygate: log filter \"polygate=loud\" is not of the form \"info\" or \"info,polygate::connection=trace\"";
    assert!(output.stderr.starts_with(begins), "{}", output.stderr);
    let output = run(&["serve", "-c", file.to_str().unwrap(), "--log-format", "xml"]).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("[possible values: text, json]"), "{}", output.stderr);
}
