//! `polygate check`.

use crate::program::{Setup, repository, run, run_into};

/// A valid file gets a summary.
#[tokio::test]
async fn a_valid_file() {
    let setup = Setup::new("[broker]\nbind = \"127.0.0.1:1883\"\n");
    let file = setup.write();
    let output = run(&["check", "-c", &file]).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""));
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], format!("{file} is valid"));
    assert_eq!(lines[1], "  node    test");
    assert_eq!(lines[3], "  broker  embedded, MQTT clients on 127.0.0.1:1883");
}

/// Every sample is valid.
#[tokio::test]
async fn the_samples() {
    for sample in ["polygate.toml", "wasm.toml", "grpc.toml"] {
        let output = run(&["check", "-c", repository("examples").join(sample).to_str().unwrap()]).await;
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{sample}");
        assert!(!output.stdout.contains("warning"), "{}", output.stdout);
    }
}

/// A faulty file gets all faults.
#[tokio::test]
async fn a_faulty_file() {
    let setup = Setup::new("[broker]\nbnd = \"127.0.0.1:1883\"\npacket_max = 1\n");
    let file = setup.write();
    let output = run(&["check", "--config", &file]).await;
    assert_eq!((output.code, &*output.stdout), (Some(1), ""));
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines[0], format!("{file} has 2 faults:"));
    assert_eq!(
        lines[1],
        "  line 6  broker.bnd          is not a key of [broker] of kind \"embedded\"; did you mean \"bind\"?"
    );
    assert!(lines[2].starts_with("  line 7  broker.packet_max   "), "{}", lines[2]);
    assert_eq!(lines.len(), 3);
}

/// A result that cannot be written is a failure.
#[tokio::test]
async fn nowhere_to_write() {
    let file = repository("examples/wasm.toml");
    let output = run_into("/dev/full", &["check", "-c", file.to_str().unwrap()]).await;
    let reported = "polygate: cannot write the result: no space left on device\n";
    assert_eq!((output.code, &*output.stderr), (Some(1), reported));
}
