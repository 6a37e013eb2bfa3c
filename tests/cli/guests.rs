//! The tools of a handler's author: `polygate guest new`, `check`, `test` and `bench`.

use serde_json::Value;

use crate::fixture::Workshop;
use crate::program::{Device, Output, Setup, repository, run};

/// Every guest of the repository is a handler, with a list of its requirements.
#[tokio::test]
async fn all_guests_are_handlers() {
    for entry in std::fs::read_dir(repository("guests/dist")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        let file = file.to_str().unwrap();
        let output = run(&["guest", "check", file, "--json", "--memory-max", "1GiB"]).await;
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{file}: {}", output.stdout);
        let reported: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(
            (&reported["handler"], &reported["interface"]),
            (&true.into(), &"polygate:handler/handler@0.1.0".into())
        );
        assert!(
            reported["start_memory_bytes"].as_u64().unwrap()
                >= reported["memories"][0]["minimum_bytes"].as_u64().unwrap()
        );
    }
}

/// For people, the same in lines.
#[tokio::test]
async fn what_a_guest_is() {
    let output = guest("check", "echo", &[]).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""));
    for line in [
        "echo.wasm is a handler\n",
        "  interface   polygate:handler/handler@0.1.0\n",
        "  migrates    yes: keeps its connections' state over a swap\n",
        "  imports     polygate:handler/types@0.1.0    plain data\n",
        "              polygate:handler/adapter@0.1.0  the operations of its own connection\n",
        "  memory      1 memory, ",
        "  failures    are reported ",
    ] {
        assert!(output.stdout.contains(line), "{line:?} is not in\n{}", output.stdout);
    }
    let (workshop, file) = Workshop::per_chunk();
    let output = run(&["guest", "check", &file]).await;
    let reported = workshop.without_folder(&output.stdout);
    assert!(reported.starts_with("per_chunk.wasm is a handler\n  file        a core module of "), "{reported}");
    assert!(reported.contains("\n  migrates    no\n"), "{reported}");
    assert!(reported.contains("\n  failures    are reported with function names\n"), "{reported}");
}

/// What is no handler is refused with the reason.
#[tokio::test]
async fn what_is_no_handler() {
    let workshop = Workshop::new();
    let script = workshop.write("script.wasm", "#!/bin/sh\n");
    let empty = workshop.write("empty.wasm", b"\0asm\x0d\0\x01\0");
    let cut = std::fs::read(repository("guests/dist/echo.wasm")).unwrap();
    let cut = workshop.write("cut.wasm", &cut[..cut.len() / 2]);
    let cases = [
        (&script, "script.wasm is no handler: expected WebAssembly in binary form, came another format\n"),
        (&empty, "does not export polygate:handler/handler@0.1.0; it exports nothing\n"),
        (&cut, "cut.wasm is no handler: "),
    ];
    for (file, expected) in cases {
        let output = run(&["guest", "check", file]).await;
        assert_eq!((output.code, &*output.stderr), (Some(1), ""), "{file}");
        let reported = workshop.without_folder(&output.stdout);
        assert!(reported.contains(expected), "{reported}");
    }
    let (_workshop, large) = Workshop::per_chunk();
    let output = run(&["guest", "check", &large, "--memory-max", "64KiB"]).await;
    assert_eq!(output.code, Some(1));
    assert!(output.stdout.contains("is no handler: it does not start: "), "{}", output.stdout);
    assert!(
        output.stdout.ends_with("; it needs --memory-max (memory_max) of at least 131072 bytes\n"),
        "{}",
        output.stdout
    );
    let output = run(&["guest", "check", "absent.wasm"]).await;
    assert_eq!((output.code, &*output.stderr), (Some(1), "polygate: absent.wasm: no such file or directory\n"));
}

/// The recorded trackers go as recorded however their bytes are cut.
#[tokio::test]
async fn recorded_trackers() {
    let conversations = repository("examples/conversations/jt808");
    let arguments = [conversations.to_str().unwrap(), "--setting", "auth_code=tour", "--cuts-max", "64", "--json"];
    let output = guest("test", "jt808", &arguments).await;
    let reported: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, &reported["passed"]), (Some(0), &Value::Bool(true)), "{}", output.stdout);
    let conversations = reported["conversations"].as_array().unwrap();
    assert!(conversations.len() > 50);
    for conversation in conversations {
        assert!(conversation["fuel"]["total"].as_u64().unwrap() > 0, "{conversation}");
        assert!(conversation["plays"]["vanished"].as_u64().unwrap() > 0, "{conversation}");
        assert!(conversation["plays"]["cut"].as_u64().unwrap() > 0, "{conversation}");
    }
}

/// The settings may come from the configuration that the gateway runs with.
#[tokio::test]
async fn settings_of_a_configuration() {
    let tour = repository("examples/conversations/jt808/tour.conversation");
    let config = repository("examples/wasm.toml");
    let from = format!("{}:jt808", config.display());
    let output = guest("test", "jt808", &[tour.to_str().unwrap(), "--settings-from", &from, "--cuts-max", "0"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stdout);
    assert!(output.stderr.contains("terminal 13800138000"), "what the guest says is on stderr: {}", output.stderr);
    assert!(output.stdout.ends_with("1 conversation, 1 as recorded, 0 failed; 1 play\n"), "{}", output.stdout);

    let from = format!("{}:nobody", config.display());
    let output = guest("test", "jt808", &[tour.to_str().unwrap(), "--settings-from", &from]).await;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("found \"nobody\"; there are \"jt808\", "), "{}", output.stderr);
}

/// A different answer is reported with its line, the expected and the received value.
#[tokio::test]
async fn a_mismatch() {
    let workshop = Workshop::new();
    let file = workshop.write("a.conversation", "# One.\n> \"ping\"\n< \"pong\"\n");
    let output = guest("test", "echo", &[&file, "--setting", "mode=raw"]).await;
    assert_eq!((output.code, &*output.stderr), (Some(1), ""));
    let expected = "failed  a.conversation: line 3: the bytes to the device differ at byte 2 of 4\n  \
                    expected  \"pong\"\n  received  \"ping\"\n1 conversation, 0 as recorded, 1 failed; 1 play\n";
    assert_eq!(workshop.without_folder(&output.stdout), expected);
}

/// A guest whose answers depend on how the bytes are cut goes as recorded, and fails all the same.
#[tokio::test]
async fn a_guest_that_takes_chunks_for_frames() {
    let (workshop, guest) = Workshop::per_chunk();
    let file = workshop.write("a.conversation", "> \"one\"\n< \"got it\\n\"\n> \"two\"\n< \"got it\\n\"\n");
    let output = run(&["guest", "test", &guest, &file, "--cuts-max", "0"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stdout);

    let output = run(&["guest", "test", &guest, &file]).await;
    assert_eq!(output.code, Some(1), "{}", output.stdout);
    let reported = workshop.without_folder(&output.stdout);
    let expected = [
        "failed  a.conversation: with each \">\" line cut after its first byte: ",
        "failed  a.conversation: byte by byte: ",
        "failed  a.conversation: with \">\" lines that follow one another joined: line 4: expected 7 bytes to the device, \
         received 0 in time\n",
    ];
    for line in expected {
        assert!(reported.contains(line), "{line:?} is not in\n{reported}");
    }
    assert!(reported.contains("after line 4: expected no more bytes to the device, received 14\n"), "{reported}");
}

/// A failure is reported with the event, its line, and its backtrace.
#[tokio::test]
async fn a_guest_that_traps() {
    let (workshop, guest) = Workshop::per_chunk();
    let file = workshop.write("a.conversation", "> \"one\"\n< \"got it\\n\"\n> \"!secret\"\n");
    let output = run(&["guest", "test", &guest, &file]).await;
    assert_eq!(output.code, Some(1));
    let reported = workshop.without_folder(&output.stdout);
    let mut lines = reported.lines();
    let first = "failed  a.conversation: line 3: the guest failed in on_received_bytes (7 bytes): wasm trap: wasm \
                 `unreachable` instruction executed";
    assert_eq!(lines.next(), Some(first), "{reported}");
    assert!(lines.next().unwrap().ends_with(" - decode_frame"), "{reported}");
    assert!(lines.next().unwrap().ends_with(" - answer"), "{reported}");
    assert!(output.stderr.contains("decode_frame"), "{}", output.stderr);
}

/// Guests that exceed a limit are stopped, and the limit is reported.
#[tokio::test]
async fn guests_that_break_a_limit() {
    let workshop = Workshop::new();
    let cases = [
        ("forever", "no answer within 50 ms"),
        ("hoard", "after memory beyond 16777216 bytes was refused"),
        ("recurse", "out of bounds memory access"),
        ("trap", "unreachable"),
    ];
    for (name, expected) in cases {
        let file = workshop.write("a.conversation", format!("> \"{name}\"\n"));
        let output = guest("test", name, &[&file, "--event-timeout", "50ms"]).await;
        assert_eq!(output.code, Some(1), "{name}: {}", output.stdout);
        let reported = workshop.without_folder(&output.stdout);
        let begins =
            format!("failed  a.conversation: line 1: the guest failed in on_received_bytes ({} bytes): ", name.len());
        assert!(reported.starts_with(&begins) && reported.contains(expected), "{name}: {reported}");
    }
}

/// The gateway's log names the functions too, and the event; what was in it only for who asks.
#[tokio::test]
async fn a_failure_in_the_log_of_the_gateway() {
    let (_workshop, guest) = Workshop::per_chunk();
    for (log, shows_payload) in [("debug", false), ("info,polygate::payload=trace", true)] {
        let text = format!(
            "[broker]\nbind = \"127.0.0.1:0\"\n[handlers.h]\nkind = \"wasm\"\ncomponent = {guest:?}\n\
             [listeners.l]\nbind = \"tcp://127.0.0.1:0\"\nhandlers = [\"h\"]\n"
        );
        let mut serving = Setup::new(&text).serve(&["--log-format", "json", "--log", log]);
        serving.line("started").await;
        let mut device = Device::connect(serving.listener()).await;
        device.says("!secret").await;
        let line: Value = serde_json::from_str(&serving.text("guest failed").await).unwrap();
        assert_eq!((&line["call"], &line["bytes"]), (&"on_received_bytes".into(), &7.into()), "{line}");
        assert!(line["report"].as_str().unwrap().contains("decode_frame"), "{line}");
        let (_, seen) = serving.stop().await;
        let payload = seen.iter().any(|line| line.contains("21736563726574"));
        assert_eq!(payload, shows_payload, "{log}");
    }
}

/// What a guest does is written down, with what the person wrote around it; the second time nothing changes, and the
/// test passes.
#[tokio::test]
async fn recording() {
    let workshop = Workshop::new();
    let connect = r#"{\"type\":1,\"clientinfo\":{\"clientid\":\"c\",\"proto_name\":\"echo\",\"proto_ver\":\"1\"},\"password\":\"p\"}"#;
    let publish = r#"{\"type\":3,\"topic\":\"t\",\"qos\":1,\"payload\":\"x\"}"#;
    let subscribe = r#"{\"type\":5,\"topic\":\"t/#\",\"qos\":1}"#;
    let text = format!(
        "# Who it is.\n> \"{connect}\"\n# What it says.\n> \"{publish}\"\n> \"{subscribe}\"\ndeliver \"t/1\" \"hi\"\nclose peer\n"
    );
    let file = workshop.write("a.conversation", text);
    let output = guest("test", "echo", &[&file, "--bless"]).await;
    assert_eq!((output.code, &*workshop.without_folder(&output.stdout)), (Some(0), "a.conversation  recorded\n"));
    let recorded = std::fs::read_to_string(&file).unwrap();
    assert!(
        recorded.contains("\npublish \"t\" qos=1 \"x\"\n") && recorded.contains("\n# What it says.\n"),
        "{recorded}"
    );
    assert!(recorded.contains("hi") && recorded.ends_with("close peer\n"), "{recorded}");

    let output = guest("test", "echo", &[&file, "--bless"]).await;
    assert_eq!(workshop.without_folder(&output.stdout), "a.conversation  unchanged\n");
    let output = guest("test", "echo", &[&file]).await;
    assert_eq!(output.code, Some(0), "{}", output.stdout);
}

/// What only time brings comes when the conversation says so, at once.
#[tokio::test]
async fn timers() {
    let workshop = Workshop::new();
    let connect = |keepalive: u32| {
        let object = format!(r#"{{\"type\":1,\"clientinfo\":{{\"clientid\":\"c\",\"keepalive\":{keepalive}}}}}"#);
        format!("> \"{object}\"\n< \"{{\\\"type\\\":2,\\\"code\\\":0}}\"\n")
    };
    let cases = [
        (format!("{}timer keepalive\nclose keepalive\n", connect(60)), None),
        (format!("{}close keepalive\n", connect(60)), None),
        (format!("{}close gateway\n", connect(60)), None),
        (format!("{}close idle\n", connect(0)), None),
        (format!("{}timer keepalive\n", connect(0)), Some("line 3: expected the keepalive timer to run")),
        (format!("{}close keepalive\n", connect(0)), Some("line 3: expected the connection to be closed (keepalive)")),
        (format!("{}deliver \"a\" \"x\"\n", connect(0)), Some("line 3: expected a subscription that \"a\" fits")),
    ];
    for (text, failure) in cases {
        let file = workshop.write("a.conversation", &text);
        let output = guest("test", "echo", &[&file]).await;
        match failure {
            None => assert_eq!(output.code, Some(0), "{text}\n{}", output.stdout),
            Some(failure) => assert!(output.stdout.contains(failure), "{text}\n{}", output.stdout),
        }
    }
}

/// What a guest publishes when the connection has ended stands before the line that ends it, since nothing can stand
/// after it.
#[tokio::test]
async fn last_words() {
    let (workshop, guest) = Workshop::per_chunk();
    let file = workshop.write("a.conversation", "> \"will\"\nclose peer\n");
    let output = run(&["guest", "test", &guest, &file, "--bless"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let recorded = "> \"will\"\n< \"got it\\n\"\npublish \"status\" qos=0 \"gone\"\nclose peer\n";
    assert_eq!(std::fs::read_to_string(&file).unwrap(), recorded);
    let output = run(&["guest", "test", &guest, &file, "--cuts-max", "0"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stdout);

    let file = workshop.write("b.conversation", "> \"will\"\n< \"got it\\n\"\n");
    let output = run(&["guest", "test", &guest, &file, "--cuts-max", "0"]).await;
    assert!(output.stdout.contains("after line 2: expected no more messages"), "{}", output.stdout);
}

/// Malformed files and folders are reported, all of them at once.
#[tokio::test]
async fn what_cannot_be_played() {
    let workshop = Workshop::new();
    let (one, other) = (workshop.write("one.conversation", "?\n"), workshop.write("other.conversation", "!\n"));
    let output = guest("test", "echo", &[&one, &other]).await;
    assert_eq!((output.code, &*output.stdout), (Some(1), ""));
    let reported = workshop.without_folder(&output.stderr);
    assert!(
        reported.contains("one.conversation has 1 fault") && reported.contains("other.conversation has 1 fault"),
        "{reported}"
    );

    std::fs::create_dir(workshop.path("empty")).unwrap();
    let output = guest("test", "echo", &[workshop.path("empty").to_str().unwrap()]).await;
    assert!(output.stderr.contains("expected files that end in .conversation in "), "{}", output.stderr);
    let output = guest("test", "echo", &[&one, "--setting", "mode"]).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("expected NAME=VALUE"), "{}", output.stderr);
}

/// What an instance and an event cost, in text and in JSON.
#[tokio::test]
async fn figures() {
    let output = guest("bench", "echo", &["--setting", "mode=raw", "--json"]).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{}", output.stdout);
    let reported: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(reported["debug_build"], cfg!(debug_assertions));
    assert!(reported["instance"]["process_bytes"].as_u64().unwrap() > 4096, "{reported}");
    assert_eq!(reported["events"][0]["what"], "64 bytes");
    assert!(reported["events"][1]["ns"].as_u64().unwrap() > 0, "{reported}");
}

/// A project is written with what belongs to it, and no other folder is touched.
#[tokio::test]
async fn a_new_project() {
    let templates = std::fs::read_dir(repository("guests/templates")).unwrap();
    let mut languages: Vec<String> = templates.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    languages.sort();
    assert!(languages.contains(&"rust".to_owned()));
    let workshop = Workshop::new();
    for language in &languages {
        let output = workshop.run(&["guest", "new", &format!("my-{language}"), "--lang", language]).await;
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{language}");
        let begins = format!("my-{language}: ");
        assert!(output.stdout.starts_with(&begins), "{}", output.stdout);
        assert!(output.stdout.contains(&format!(" files. Next:\n\n  cd my-{language}\n  ")), "{}", output.stdout);
        let again = workshop.run(&["guest", "new", &format!("my-{language}"), "--lang", language]).await;
        let reported = format!(
            "polygate: expected my-{language} not to exist, or to be an empty folder; it has something in it\n"
        );
        assert_eq!((again.code, again.stderr), (Some(1), reported));
    }
    let output = run(&["guest", "new", "meter", "--lang", "cobol"]).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains(&format!("[possible values: {}]", languages.join(", "))), "{}", output.stderr);
    let output = run(&["guest", "new", "Meter", "--lang", "rust"]).await;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("lower-case letters, digits and \"-\""), "{}", output.stderr);
}

/// A command for one of the repository's guests.
async fn guest(command: &str, name: &str, more: &[&str]) -> Output {
    let file = repository("guests/dist").join(name).with_extension("wasm");
    run(&[&["guest", command, file.to_str().unwrap()], more].concat()).await
}
