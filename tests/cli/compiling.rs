//! `polygate compile`: the process that compiles uploaded code.

use std::process::Stdio;

use tokio::process::Command;

use crate::program::{repository, within};

/// The compiler gives up new privileges before it reads the component, and returns the code through its stdout only.
#[tokio::test]
async fn the_compiler_is_confined() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polygate"));
    command.args(["--log=off", "compile", "--handler=h", "--known-as=h.wasm", "--component=/proc/self/fd/0"]);
    command.args(["--instance-memory=16777216", "--memory=4294967296", "--seconds=300"]);
    // It waits for the component in a pipe, where it can be looked at.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id().unwrap());
    let confined = async {
        while !std::fs::read_to_string(&status).unwrap().contains("NoNewPrivs:\t1\n") {
            tokio::task::yield_now().await;
        }
    };
    within("no new privileges", confined).await;
    drop(child.stdin.take());
    let output = within("the end of the compiler", child.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "an empty component: {output:?}");

    let mut command = Command::new(env!("CARGO_BIN_EXE_polygate"));
    command.args(["--log=off", "compile", "--handler=h", "--known-as=h.wasm", "--component"]);
    command.arg(repository("guests/dist/echo.wasm"));
    command.args(["--instance-memory=16777216", "--memory=4294967296", "--seconds=300"]);
    let output = within("the compiled code", command.output()).await.unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    assert!(output.stdout.starts_with(b"\x7fELF"), "{} bytes", output.stdout.len());
}
