//! Changes of a running gateway: SIGHUP, `--watch`, and `polygate handler`.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{Device, Setup, repository, run};

/// SIGHUP: a changed handler is swapped while its device stays connected; what needs a restart is named; a file with
/// faults changes nothing.
#[tokio::test]
async fn hangup() {
    let setup = Setup::guest("counter", "settings = { version = \"1\" }");
    let file = PathBuf::from(setup.write());
    let mut serving = setup.served().await;
    let mut device = Device::connect(serving.listener()).await;
    asks(&mut device, "1:1").await;

    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("node = \"test\"", "node = 7")).unwrap();
    serving.signal(Signal::HUP);
    let told = serving.text("configuration rejected").await;
    assert!(told.contains("gateway.node") && told.contains("found the integer 7"), "{told}");

    let changed = text.replace("\"1\"", "\"2\"").replace("node = \"test\"", "node = \"other\"");
    std::fs::write(&file, changed).unwrap();
    serving.signal(Signal::HUP);
    let told = serving.line("handler changed").await;
    assert_eq!((&told["by"], &told["version"]), (&Value::from("reload"), &Value::from(2)));
    let told = serving.line("changes of these keys take effect with the next start only").await;
    assert_eq!(told["keys"], "gateway.node");
    serving.line("configuration reloaded").await;
    until(&mut device, "2:").await;
    assert_eq!(serving.stop().await.0, Some(0));
}

/// `--watch`: a component that is replaced is swapped; one that is no handler is refused, and the old one goes on.
#[tokio::test]
async fn watch() {
    let setup = Setup::guest("counter", "");
    let file = PathBuf::from(setup.write());
    let component = file.with_file_name("guest.wasm");
    std::fs::copy(repository("guests/dist/counter.wasm"), &component).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let own = repository("guests/dist/counter.wasm").display().to_string();
    let setup = setup.with_text(text.replace(&own, "guest.wasm"));
    let mut serving = setup.serve(&["--watch", "--log-format", "json"]);
    serving.line("started").await;
    let mut device = Device::connect(serving.listener()).await;
    asks(&mut device, "1:1").await;

    std::fs::write(&component, b"\0asm\x0d\0\x01\0").unwrap();
    let told = serving.text("configuration rejected").await;
    assert!(told.contains("does not export polygate:handler/handler@0.1.0; it exports nothing"), "{told}");
    asks(&mut device, "1:2").await;

    let beside = component.with_extension("new");
    std::fs::copy(repository("guests/dist/jt808.wasm"), &beside).unwrap();
    std::fs::rename(&beside, &component).unwrap();
    let told = serving.line("handler changed").await;
    assert_eq!(told["version"], 2);
    // It has no way to hand its state over, so it stays.
    asks(&mut device, "1:3").await;
    assert_eq!(serving.stop().await.0, Some(0));
}

/// A component that does not do what the handler's conversations say is refused in words, unless the operator insists.
#[tokio::test]
async fn unchecked() {
    let setup = Setup::guest("counter", "conversations = \"a.conversation\"");
    let conversation = PathBuf::from(setup.write()).with_file_name("a.conversation");
    std::fs::write(&conversation, "> \"x\"\n< \"1:1\\n\"\n").unwrap();
    let mut serving = setup.served().await;
    let admin = format!("http://{}", serving.admin());
    let component = repository("guests/dist/trap.wasm").display().to_string();
    let swap = ["handler", "swap", "h", &component, "--admin", &admin];

    let refused = run(&swap).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("a.conversation: line 2: the bytes to the device differ"), "{refused:?}");
    let taken = run(&[&swap[..], &["--unchecked", "--keep"]].concat()).await;
    assert_eq!(taken.stdout, "handler h: version 2 is kept; version 1 was active\n", "{taken:?}");
    serving.line("new version without checks: conversations are not replayed").await;
    let taken = run(&[&swap[..], &["--unchecked"]].concat()).await;
    assert_eq!(taken.stdout, "handler h: version 3 is active; version 1 was active\n", "{taken:?}");
}

/// From the shell and back: every operation, for people and as JSON, with the token.
#[tokio::test]
async fn handler() {
    let setup = Setup::guest("counter", "").admin("token = \"a-token-of-the-test\"");
    let token = PathBuf::from(setup.write()).with_file_name("token");
    std::fs::write(&token, "a-token-of-the-test\n").unwrap();
    let serving = setup.served().await;
    let admin = format!("http://{}", serving.admin());
    let token = token.display().to_string();
    let options = ["--admin", &*admin, "--token-file", &*token];
    let ask = async |arguments: &[&str]| run(&[&["handler"], arguments, &options].concat()).await;

    let output = ask(&["list"]).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""));
    let lines: Vec<Vec<&str>> = output.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["HANDLER", "KIND", "ACTIVE", "BEFORE", "TRIAL", "HEALTHY", "VERSIONS", "CONNECTIONS"]);
    assert_eq!(lines[1], ["h", "wasm", "1", "-", "-", "yes", "1", "0"]);

    let component = repository("guests/dist/counter-pinned.wasm").display().to_string();
    let output = ask(&["swap", "h", &component]).await;
    assert_eq!(output.stdout, "handler h: version 2 is active; version 1 was active\n", "{output:?}");
    let output = ask(&["swap", "h", &component, "--swap", "canary:12.5%", "--json"]).await;
    let done: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&done["version"], &done["state"]), (&Value::from(3), &Value::from("trial")));
    assert!(ask(&["list"]).await.stdout.contains("3 (canary:12.5%)"));
    assert_eq!(ask(&["abandon", "h"]).await.stdout, "handler h: version 3 is kept; version 2 was active\n");
    assert_eq!(ask(&["rollback", "h"]).await.stdout, "handler h: version 1 is active; version 2 was active\n");
    assert_eq!(ask(&["activate", "h", "3"]).await.stdout, "handler h: version 3 is active; version 1 was active\n");
    assert_eq!(
        ask(&["swap", "h", &component, "--keep"]).await.stdout,
        "handler h: version 4 is kept; version 3 was active\n"
    );
    let output = ask(&["versions", "h"]).await;
    let states: Vec<&str> = output.stdout.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(states, ["STATE", "kept", "active", "kept", "kept"]);

    for (arguments, told) in [
        (vec!["promote", "h"], "handler \"h\" has no version on trial; expected a canary or a shadow in progress"),
        (vec!["rollback", "x"], "no handler is named \"x\"; expected one of h"),
        (vec!["swap", "h", "no/such.wasm"], "cannot read \"no/such.wasm\": no such file or directory"),
        (vec!["swap", "h", "--url", "nonsense"], "the url is not of the form scheme://host:port"),
    ] {
        let output = ask(&arguments).await;
        assert_eq!((output.code, &*output.stdout), (Some(1), ""), "{arguments:?}");
        assert!(output.stderr.starts_with(&format!("polygate: {told}")), "{output:?}");
    }
    let output = run(&["handler", "list", "--admin", &admin]).await;
    let told = format!(
        "polygate: the admin port at {} requires another token; set it with --config, --token-file or POLYGATE_ADMIN_TOKEN\n",
        serving.admin()
    );
    assert_eq!((output.code, output.stderr), (Some(1), told));
    let output = run(&["handler", "list", "--admin", "http://127.0.0.1:1"]).await;
    assert_eq!(output.stderr, "polygate: cannot reach the admin port at 127.0.0.1:1: connection refused\n");
    let output = run(&["handler", "list", "--admin", "https://127.0.0.1:1"]).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("https is not supported"), "{output:?}");
    assert_eq!(serving.stop().await.0, Some(0));
}

/// A component that takes more memory to compile than it may is refused, at the start and in an upload, and nothing
/// else is harmed by it.
#[tokio::test]
async fn a_compiler_that_eats_memory() {
    let dir = tempfile::tempdir().unwrap();
    let hog = dir.path().join("hog.wasm");
    std::fs::write(&hog, hoggish_component()).unwrap();
    let setup = Setup::guest("counter", "compile_memory_max = \"192MiB\"");
    let serving = setup.served().await;
    let admin = format!("http://{}", serving.admin());
    let mut device = Device::connect(serving.listener()).await;
    asks(&mut device, "1:1").await;
    let output = run(&["handler", "swap", "h", hog.to_str().unwrap(), "--admin", &admin]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("\"the upload\" could not be compiled within 192"), "{output:?}");
    asks(&mut device, "1:2").await;
    assert_eq!(serving.stop().await.0, Some(0));

    let setup = Setup::guest("counter", "compile_memory_max = \"192MiB\"");
    let file = setup.write();
    let text = std::fs::read_to_string(&file).unwrap();
    let own = repository("guests/dist/counter.wasm").display().to_string();
    let output = setup.with_text(text.replace(&own, hog.to_str().unwrap())).serve_to_the_end(&[]).await;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("hog.wasm\" could not be compiled within 192"), "{output:?}");
}

/// One function of a million additions, over which a compiler keeps everything it knows.
fn hoggish_component() -> Vec<u8> {
    const ADDITIONS: usize = 1_000_000;
    let unsigned = |mut value: usize| {
        let mut bytes = Vec::new();
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                bytes.push(low);
                return bytes;
            }
            bytes.push(low | 0x80);
        }
    };
    let section = |id: u8, content: &[u8]| [&[id][..], &unsigned(content.len()), content].concat();
    // local.get 0, then each time: local.get 0, i32.add; and the end.
    let mut body = vec![0, 0x20, 0];
    for _ in 0..ADDITIONS {
        body.extend([0x20, 0, 0x6a]);
    }
    body.push(0x0b);
    let code = [&[1][..], &unsigned(body.len()), &body].concat();
    let module =
        [&b"\0asm\x01\0\0\0"[..], &section(1, &[1, 0x60, 1, 0x7f, 1, 0x7f]), &section(3, &[1, 0]), &section(10, &code)]
            .concat();
    [&b"\0asm\x0d\0\x01\0"[..], &section(1, &module)].concat()
}

async fn asks(device: &mut Device, answer: &str) {
    device.says("x").await;
    device.gets(&format!("{answer}\n")).await;
}

/// Asks until the answer begins like this: a move takes its time.
async fn until(device: &mut Device, begins: &str) {
    let mut count = 1;
    loop {
        count += 1;
        device.says("x").await;
        let answer = device.line().await;
        assert!(answer.ends_with(&format!(":{count}")), "{answer}");
        if answer.starts_with(begins) {
            return;
        }
    }
}
