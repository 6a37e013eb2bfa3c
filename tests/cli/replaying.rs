//! `polygate replay` against `polygate serve`.

use crate::program::{Setup, repository, run};

/// A JT/T 808 terminal, with its messages seen at the broker: recorded, nothing is left to record, and all is as
/// recorded.
#[tokio::test]
async fn a_recorded_terminal() {
    let serving = Setup::guest("jt808", "settings = { auth_code = \"tour\" }").served().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tour.conversation");
    std::fs::copy(repository("examples/conversations/jt808/tour.conversation"), &file).unwrap();
    let to = format!("tcp://{}", serving.listener());
    let broker = format!("mqtt://{}", serving.broker());
    let replay = ["replay", file.to_str().unwrap(), "--to", &to, "--mqtt", &broker];

    let output = run(&[&replay[..], &["--bless"]].concat()).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{}", output.stdout);
    let output = run(&[&replay[..], &["--bless"]].concat()).await;
    assert_eq!((output.code, output.stdout), (Some(0), format!("{}  unchanged\n", file.display())));

    let output = run(&replay).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{}", output.stdout);
    assert!(output.stdout.starts_with("conversations  1 played, 1 as recorded, 0 failed\n"), "{}", output.stdout);
    assert_eq!(serving.stop().await.0, Some(0));
}

/// A mismatch is reported with its line, and exits with 1.
#[tokio::test]
async fn not_as_recorded() {
    let serving = Setup::echo().served().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.conversation");
    std::fs::write(&file, "> \"21.5\"\n< \"21.6\"\n").unwrap();
    let to = format!("tcp://{}", serving.listener());
    let output = run(&["replay", file.to_str().unwrap(), "--to", &to]).await;
    assert_eq!(output.code, Some(1));
    let reported = "wrong.conversation: line 2: the bytes to the device differ at byte 4 of 4\n  expected  \"21.6\"\n  received  \"21.5\"\n";
    assert!(output.stdout.ends_with(reported), "{}", output.stdout);
    assert_eq!(serving.stop().await.0, Some(0));
}

/// A gateway that is not there.
#[tokio::test]
async fn nobody_there() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("short.conversation");
    std::fs::write(&file, "> \"21.5\"\n").unwrap();
    let output = run(&["replay", file.to_str().unwrap(), "--to", &format!("tcp://{closed}")]).await;
    assert_eq!(output.code, Some(1));
    let reported = format!("short.conversation: cannot connect to tcp://{closed}: connection refused\n");
    assert!(output.stdout.ends_with(&reported), "{}", output.stdout);
}

/// Files that are no conversations: nothing is played.
#[tokio::test]
async fn no_conversation() {
    let output = run(&["replay", "no/such.conversation", "--to", "tcp://127.0.0.1:9"]).await;
    assert_eq!((output.code, &*output.stdout), (Some(1), ""));
    assert!(
        output.stderr.starts_with("polygate: ") && output.stderr.ends_with(": no such file or directory\n"),
        "{}",
        output.stderr
    );
}
