//! `polygate tap`: live traffic of one connection of a running gateway.

use crate::program::{Device, Setup, run};

/// The next device is watched from its first byte to its end; what was recorded is a conversation, and plays.
#[tokio::test]
async fn a_recording_plays() {
    let mut serving = Setup::guest("counter", "").served().await;
    let admin = format!("http://{}", serving.admin());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("night.conversation").display().to_string();
    let watching = tokio::spawn({
        let arguments = ["tap", "--next", "--listener", "l", "--record", &file, "--admin", &admin].map(str::to_owned);
        async move { run(&arguments.each_ref().map(String::as_str)).await }
    });
    serving.line("tap started").await;
    let mut device = Device::connect(serving.listener()).await;
    for count in 1..=3 {
        device.says("x").await;
        device.gets(&format!("1:{count}\n")).await;
    }
    drop(device);
    let output = watching.await.unwrap();
    assert_eq!((output.code, &*output.stderr), (Some(0), ""));
    let steps: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| line.starts_with('@'))
        .map(|line| line.split_once(' ').unwrap().1)
        .collect();
    let expected = [r#"> "x""#, r#"< "1:1\n""#, r#"> "x""#, r#"< "1:2\n""#, r#"> "x""#, r#"< "1:3\n""#, "close peer"];
    assert_eq!(steps, expected);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), output.stdout);

    let to = format!("tcp://{}", serving.listener());
    let output = run(&["replay", &file, "--to", &to]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let output = run(&["tap", "--next", "--record", &file, "--admin", &admin]).await;
    assert_eq!(output.code, Some(1), "a recording is not written over");
    assert!(output.stderr.contains("file exists"), "{output:?}");
    assert_eq!(serving.stop().await.0, Some(0));
}

/// Whoever names a connection that does not exist, or names it wrongly, is told; and a tap that waits ends with the
/// gateway.
#[tokio::test]
async fn nobody_to_watch() {
    let mut serving = Setup::guest("counter", "").served().await;
    let admin = format!("http://{}", serving.admin());
    for (conn, reported) in [
        ("0000000000000007", "polygate: no connection has the id 0000000000000007\n"),
        ("7", "polygate: conn: expected 16 hexadecimal digits as in the log, found \"7\"\n"),
    ] {
        let output = run(&["tap", "--conn", conn, "--admin", &admin]).await;
        assert_eq!((output.code, &*output.stderr), (Some(1), reported));
    }
    let waiting = tokio::spawn(async move { run(&["tap", "--client", "nobody", "--admin", &admin]).await });
    serving.line("tap started").await;
    assert_eq!(serving.stop().await.0, Some(0));
    let output = waiting.await.unwrap();
    assert_eq!((output.code, &*output.stdout, &*output.stderr), (Some(0), "", ""));
}
