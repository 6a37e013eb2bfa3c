//! Configuration files: accepted ones and their settings, refused ones and their messages.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polygate::testing::admin::Token;
use polygate::testing::config::{Advice, Config, ExternalFiles, Faults, Handler, Listener, Program, Warning};
use polygate::testing::connection::Rates;
use polygate::testing::framing::{
    Delimited, Deliver, Escapes, Fixed, Flagged, Framing, LengthPrefixed, Lines, Order, Silence, Width,
};
use polygate::testing::listener::access::{Access, Effect};
use polygate::testing::listener::flow::Bounds;
use polygate::testing::listener::per_address::Limits;
use polygate::testing::percent::Percent;
use polygate::testing::rate::Rate;
use polygate::testing::rollout::Swap;
use proptest::prelude::*;
use secrecy::ExposeSecret;

/// "secret", with cheap parameters.
const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$3+oP1qKlyJ4YtBGvnjCIBA0OdNqSpNyvOpZGE0rShXQ";

/// Each file in tests/fixtures/bad has exactly the faults in the file beside it, and no secret in them.
#[test]
fn faults_are_told_in_these_words() {
    let dir = root().join("tests/fixtures/bad");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    assert!(files.len() > 10);
    let mut wrong = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let report = match parse(&fs::read_to_string(&file).unwrap(), name, &dir) {
            Ok(_) => "is valid\n".to_owned(),
            Err(faults) => format!("{faults}\n"),
        };
        assert!(!report.contains("s3cr3t"), "{report}");
        let expected = file.with_extension("txt");
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            fs::write(expected, report).unwrap();
        } else if fs::read_to_string(expected).unwrap_or_default() != report {
            wrong.push(report);
        }
    }
    assert!(wrong.is_empty(), "set UPDATE_FIXTURES to accept:\n{}", wrong.join("\n"));
}

/// An empty file runs a gateway on defaults, which no device can reach.
#[test]
fn everything_has_a_default() {
    let (config, warnings) = good("");
    assert!(!config.node.is_empty());
    assert_eq!(config.data_dir, Path::new("/base/polygate-data"));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert!(config.adapter.is_none() && config.admin.is_none() && config.broker.bind.is_none());
    assert!(config.auth.allow_anonymous);
    assert_eq!(advice(&warnings), [Advice::NoListener]);
}

#[test]
fn a_listener_gets_what_the_file_says() {
    let (config, _) = good(
        r#"
        [handlers.h]
        kind = "grpc"
        url = "http://handler.example:9001"

        [listeners.defaults]
        bind = "tcp://127.0.0.1:1001"
        handlers = ["h"]

        [listeners.all]
        bind = "tcp://[::1]:1002"
        handlers = ["h"]
        mountpoint = "m/${clientid}/"
        idle_timeout = "1m 30s"
        write_timeout = "500ms"
        connections_max = 1_000
        backlog = 0x10
        inbound_max = "2KB"
        outbound_max = "1.5MiB"
        messages_max = 7
        messages_bytes_max = "4096"
        access = ["deny 10.1.0.0/16", "allow all"]
        connection_rate = "5/s"
        connection_rate_per_address = "10/m"
        connections_per_address_max = 3
        bytes_rate = "1MiB/s"
        packets_rate = "20/h"
        proxy_protocol = { trusted = ["127.0.0.0/8", "::1"] }

        [listeners.datagrams]
        bind = "udp://127.0.0.1:1003"
        handlers = ["h"]
        connection_rate = "100/s"
        bytes_rate = "64KiB/s"
        "#,
    );
    let [defaults, all, datagrams] = config.listeners.as_slice() else { panic!("three listeners") };
    assert_eq!(defaults.socket.backlog, 1024);
    assert_eq!(defaults.connection.connections_max, 1_000_000);
    assert_eq!(defaults.connection.timeouts.idle, Duration::from_secs(30));
    assert_eq!(defaults.connection.timeouts.write, Duration::from_secs(15));
    assert_eq!(defaults.connection.inbound_bytes_max, 64 << 10);
    assert_eq!(defaults.connection.messages.messages_max, 1000);
    assert_eq!(defaults.connection.messages.bytes_max, 1 << 20);
    assert_eq!(defaults.connection.outbound_bytes_max, 1 << 20);

    let admission = &defaults.socket.admission;
    assert_eq!((admission.connection_rate, &admission.proxy, admission.addresses), (None, &None, Limits::default()));
    assert_eq!(admission.access, Access::default());
    assert_eq!(defaults.connection.rates, Rates::default());

    assert_eq!((&*all.socket.name, &*all.connection.listener), ("all", "all"));
    assert_eq!(all.socket.bind.to_string(), "tcp://[::1]:1002");
    assert_eq!(all.socket.backlog, 16);
    assert_eq!(all.connection.connections_max, 1000);
    assert_eq!(all.connection.timeouts.idle, Duration::from_secs(90));
    assert_eq!(all.connection.timeouts.write, Duration::from_millis(500));
    assert_eq!(all.connection.inbound_bytes_max, 2000);
    assert_eq!(all.connection.messages.messages_max, 7);
    assert_eq!(all.connection.messages.bytes_max, 4096);
    assert_eq!(all.connection.outbound_bytes_max, 3 << 19);
    assert_eq!(all.handlers, ["h".into()]);
    let admission = &all.socket.admission;
    let decide = |address: &str| admission.access.decide(address.parse().unwrap());
    assert_eq!((decide("10.1.0.1"), decide("10.2.0.1")), (Effect::Deny, Effect::Allow));
    let proxy = admission.proxy.as_ref().unwrap();
    assert_eq!(proxy.timeout, Duration::from_secs(3));
    assert!(proxy.trusts("127.9.9.9".parse().unwrap()) && !proxy.trusts("10.0.0.1".parse().unwrap()));
    // The burst of a rejecting limit is the number, that of a delaying limit a tenth of a second.
    let burst = |rate: Option<Rate>| rate.map(|rate| (rate.amount(), rate.burst()));
    assert_eq!(burst(admission.connection_rate), Some((5, 1)));
    assert_eq!(burst(admission.addresses.rate), Some((10, 10)));
    assert_eq!(admission.addresses.connections_max, Some(3));
    assert_eq!(burst(all.connection.rates.bytes), Some((1 << 20, (1 << 20) / 10)));
    assert_eq!(burst(all.connection.rates.packets), Some((20, 1)));
    assert_eq!(burst(datagrams.socket.admission.connection_rate), Some((100, 100)));
    assert_eq!(burst(datagrams.connection.rates.bytes), Some((65_536, 65_536)));
}

/// Each kind of framing is read, and has defaults of its own.
#[test]
fn a_listener_has_its_framing() {
    let framing = |written: &str| {
        let (config, _) = good(&format!(
            "[handlers.h]\nkind = \"grpc\"\nurl = \"http://handler.example:9001\"\n\
             [listeners.l]\nbind = \"tcp://127.0.0.1:1001\"\nhandlers = [\"h\"]\n{written}\n"
        ));
        config.listeners[0].connection.framing.as_deref().cloned()
    };
    assert_eq!(framing(""), None);
    let max = 64 << 10;
    assert_eq!(
        framing("framing = { kind = \"length\", width = 2 }"),
        Some(Framing::Length(LengthPrefixed {
            offset: 0,
            width: Width::Two,
            order: Order::Big,
            adjust: 0,
            max,
            deliver: Deliver::Wire,
        }))
    );
    assert_eq!(
        framing(
            r#"framing = { kind = "length", offset = 0x10, width = 8, order = "little", adjust = -24, max = "1MiB", deliver = "payload" }"#
        ),
        Some(Framing::Length(LengthPrefixed {
            offset: 16,
            width: Width::Eight,
            order: Order::Little,
            adjust: -24,
            max: 1 << 20,
            deliver: Deliver::Payload,
        }))
    );
    for (written, delimiter) in [(r"'\x03\r\n'", &b"\x03\r\n"[..]), (r#""\r\n""#, b"\r\n"), (r"'\xff'", b"\xff")] {
        assert_eq!(
            framing(&format!("framing = {{ kind = \"delimiter\", delimiter = {written} }}")),
            Some(Framing::Delimiter(Delimited { delimiter: delimiter.into(), max, deliver: Deliver::Payload }))
        );
    }
    assert_eq!(
        framing("[listeners.l.framing]\nkind = \"fixed\"\nsize = \"32B\""),
        Some(Framing::Fixed(Fixed { size: 32 }))
    );
    assert_eq!(
        framing("framing = { kind = \"line\", deliver = \"wire\", max = \"1B\" }"),
        Some(Framing::Line(Lines { max: 1, deliver: Deliver::Wire }))
    );
    assert_eq!(
        framing("framing = { kind = \"escape\", scheme = \"jt808\" }"),
        Some(Framing::Escape(Flagged { escapes: Escapes::Jt808, max, deliver: Deliver::Payload }))
    );
    assert_eq!(
        framing("framing = { kind = \"gap\", silence = \"20ms\" }"),
        Some(Framing::Gap(Silence { silence: Duration::from_millis(20), max: 256 }))
    );
}

#[test]
fn a_listener_for_datagrams_gets_what_the_file_says() {
    let (config, _) = good(
        r#"
        [handlers.h]
        kind = "grpc"
        url = "http://handler.example:9001"

        [listeners.defaults]
        bind = "udp://127.0.0.1:1001"
        handlers = ["h"]

        [listeners.all]
        bind = "udp://[::1]:1002"
        handlers = ["h"]
        flow_timeout = "1m 30s"
        connections_max = 1_000
        sockets = 4
        inbound_max = "2KB"
        datagrams_max = 7
        "#,
    );
    let [defaults, all] = config.listeners.as_slice() else { panic!("two listeners") };
    assert_eq!(defaults.connection.timeouts.silence, Some(Duration::from_secs(300)));
    let datagrams = defaults.socket.datagrams;
    assert_eq!((datagrams.sockets, datagrams.flows_max), (1, 131_072));
    assert_eq!(datagrams.queue, Bounds { datagrams_max: 256, bytes_max: 64 << 10 });

    assert_eq!(all.socket.bind.to_string(), "udp://[::1]:1002");
    assert_eq!(all.connection.timeouts.silence, Some(Duration::from_secs(90)));
    let datagrams = all.socket.datagrams;
    assert_eq!((datagrams.sockets, datagrams.flows_max), (4, 1000));
    assert_eq!(datagrams.queue, Bounds { datagrams_max: 7, bytes_max: 2000 });
}

#[test]
fn a_grpc_handler_gets_what_the_file_says_and_brings_the_adapter() {
    let (config, _) = good(
        r#"
        [handlers.b]
        kind = "grpc"
        url = "http://127.0.0.1:9001"

        [handlers.a]
        kind = "grpc"
        urls = ["https://a.example:9001", "https://b.example"]
        service = "ConnectionHandler"
        call_timeout = "2s"
        channels = 3
        tls.server_name = "handler.example"

        [listeners.l]
        bind = "tcp://127.0.0.1:0"
        handlers = ["b", "a"]
        "#,
    );
    let [Handler { program: Program::Grpc(b), .. }, Handler { program: Program::Grpc(a), .. }] =
        config.handlers.as_slice()
    else {
        panic!("two handlers, as written")
    };
    assert_eq!((&*b.name, b.channels, b.call_timeout), ("b", 2, Duration::from_secs(10)));
    assert_eq!(b.service, polygate::testing::handler::grpc::Service::Auto);
    assert_eq!((&*a.name, a.channels, a.call_timeout), ("a", 3, Duration::from_secs(2)));
    assert_eq!(a.service, polygate::testing::handler::grpc::Service::Streaming);
    assert_eq!(a.urls.len(), 2);
    assert_eq!(a.tls.as_ref().unwrap().server_name.as_deref(), Some("handler.example"));
    assert_eq!(config.adapter.unwrap().bind, SocketAddr::from((Ipv4Addr::LOCALHOST, 9100)));
}

#[test]
fn a_guest_gets_what_the_file_says_and_needs_no_adapter() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("guest.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
    let text = r#"
        [handlers.defaults]
        kind = "wasm"
        component = "guest.wasm"

        [handlers.all]
        kind = "wasm"
        component = "./guest.wasm"
        isolation = "connection"
        memory_max = "64KiB"
        event_timeout = "10ms"
        settings = { timezone = "+08:00", "any key" = "" }
        "#;
    let (config, warnings) = parse(text, "t.toml", dir.path()).unwrap();
    let [Handler { program: Program::Wasm(defaults), .. }, Handler { program: Program::Wasm(all), .. }] =
        config.handlers.as_slice()
    else {
        panic!("two guests")
    };
    assert_eq!(defaults.component, dir.path().join("guest.wasm"));
    assert_eq!((defaults.memory_bytes_max, defaults.event_timeout), (16 << 20, Duration::from_secs(1)));
    assert_eq!((all.memory_bytes_max, all.event_timeout), (65_536, Duration::from_millis(10)));
    assert_eq!(all.settings["timezone"], "+08:00");
    assert_eq!(all.settings["any key"], "");
    assert!(config.adapter.is_none());
    assert_eq!(advice(&warnings), [Advice::NoListener, Advice::HandlerUnused, Advice::HandlerUnused]);
}

/// How a new version takes over, and when it is rolled back.
#[test]
fn a_handler_has_its_way_to_swap() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("guest.wasm"), b"\0asm").unwrap();
    fs::write(dir.path().join("tour.conversation"), "").unwrap();
    let text = r#"
        [handlers.defaults]
        kind = "grpc"
        url = "http://127.0.0.1:9001"

        [handlers.all]
        kind = "wasm"
        component = "guest.wasm"
        swap = { canary = "12.5%" }
        rollback_threshold = "0.01%"
        rollback_window = "100ms"
        compile_timeout = "1s"
        compile_memory_max = "64MiB"
        conversations = "tour.conversation"

        [handlers.several]
        kind = "wasm"
        component = "guest.wasm"
        conversations = ["tour.conversation", "."]
        "#;
    let (config, _) = parse(text, "t.toml", dir.path()).unwrap();
    let [defaults, all, several] = config.handlers.as_slice() else { panic!("three handlers") };
    assert_eq!((defaults.swap, defaults.rollback.threshold), (Swap::Live, Percent::new(500)));
    assert_eq!(defaults.rollback.window, Duration::from_secs(60));
    assert_eq!(defaults.compile.memory_bytes_max, 4 << 30);
    assert_eq!((all.swap, all.rollback.threshold), (Swap::Canary(Percent::new(1250)), Percent::new(1)));
    assert_eq!(all.rollback.window, Duration::from_millis(100));
    assert_eq!((all.compile.timeout, all.compile.memory_bytes_max), (Duration::from_secs(1), 64 << 20));
    assert!(defaults.conversations.is_empty());
    assert_eq!(all.conversations, [dir.path().join("tour.conversation")]);
    assert_eq!(several.conversations, [dir.path().join("tour.conversation"), dir.path().join(".")]);
}

/// With users, anonymous access is off unless the file enables it.
#[test]
fn users_end_anonymity() {
    let user = format!("[[auth.users]]\nusername = \"u\"\npassword_hash = \"{HASH}\"\n");
    assert!(!good(&user).0.auth.allow_anonymous);
    assert!(good(&format!("auth.allow_anonymous = true\n{}", user)).0.auth.allow_anonymous);
    assert!(!good("auth.allow_anonymous = false").0.auth.allow_anonymous);
}

#[test]
fn rules_keep_their_order_and_default_to_all_clients() {
    let (config, _) = good(
        r##"
        [[auth.rules]]
        effect = "allow"
        action = "subscribe"
        usernames = ["admin-*"]
        topics = ["d/${clientid}/#"]

        [[auth.rules]]
        effect = "deny"
        action = "all"
        clients = ["a", "b*"]
        topics = ["#"]
        "##,
    );
    let [first, second] = config.auth.rules.as_slice() else { panic!("two rules") };
    assert_eq!(first.clients, ["*"]);
    assert_eq!(first.usernames.as_deref(), Some(["admin-*".to_owned()].as_slice()));
    assert_eq!(second.clients, ["a", "b*"]);
    assert_eq!(second.usernames, None);
}

/// From the environment or a file, without the line break at its end; and nobody sees it.
#[test]
fn secrets_come_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "s3cr3t-s3cr3t-s3cr3t\n").unwrap();
    let token = |written: &str| {
        let text = format!("[admin]\nbind = \"0.0.0.0:9180\"\ntoken = {written}\n");
        let (config, _) = parse(&text, "t.toml", dir.path()).unwrap();
        assert!(!format!("{config:?}").contains("s3cr3t"));
        let Token::Configured(token) = config.admin.unwrap().token else { panic!("no token of the file") };
        token.expose_secret().to_owned()
    };
    assert_eq!(token(r#"{ file = "token" }"#), "s3cr3t-s3cr3t-s3cr3t");
    assert_eq!(token(r#"{ env = "TOKEN" }"#), "s3cr3t-of-the-environment");
    assert_eq!(token(r#""s3cr3t-of-the-file-itself""#), "s3cr3t-of-the-file-itself");
}

/// Listeners that strangers can reach are advised to bound those that never log in, and over udp new flows.
#[test]
fn listeners_of_strangers_are_warned_of() {
    let of = |bind: &str, keys: &str| {
        let handler = "[handlers.h]\nkind = 'grpc'\nurl = 'http://127.0.0.1:9001'\n";
        advice(&good(&format!("{handler}[listeners.l]\nbind = '{bind}'\nhandlers = ['h']\n{keys}\n")).1)
    };
    assert_eq!(of("tcp://127.0.0.1:1", ""), []);
    assert_eq!(of("tcp://0.0.0.0:1", ""), [Advice::LoginUnbounded]);
    assert_eq!(of("tcp://[::]:1", "login_timeout = '60s'"), []);
    assert_eq!(of("udp://0.0.0.0:1", ""), [Advice::LoginUnbounded, Advice::UdpUnlimited]);
    assert_eq!(of("udp://0.0.0.0:1", "login_timeout = '60s'\nconnection_rate = '1000/s'"), []);
    assert_eq!(of("udp://0.0.0.0:1", "login_timeout = '60s'\nconnection_rate_per_address = '10/s'"), []);
}

#[test]
fn open_ports_are_warned_of() {
    let of = |text: &str| {
        let mut advice = advice(&good(text).1);
        advice.retain(|advice| *advice != Advice::NoListener);
        advice
    };
    assert_eq!(of("broker.bind = '0.0.0.0:1883'"), [Advice::BrokerOpen]);
    assert_eq!(of("broker.bind = '0.0.0.0:1883'\nauth.allow_anonymous = true"), []);
    assert_eq!(of("broker.bind = '127.0.0.1:1883'"), []);
    let proxy = |bind: &str, proxy: &str| {
        let handler = "[handlers.h]\nkind = 'grpc'\nurl = 'http://127.0.0.1:9001'\n";
        of(&format!(
            "{handler}[listeners.l]\nbind = '{bind}'\nhandlers = ['h']\nlogin_timeout = '60s'\nproxy_protocol = {proxy}\n"
        ))
    };
    assert_eq!(proxy("tcp://0.0.0.0:1", "true"), [Advice::ProxyOpen]);
    assert_eq!(proxy("tcp://[::]:1", "{ timeout = '1s' }"), [Advice::ProxyOpen]);
    for (bind, wanted) in [
        ("tcp://127.0.0.1:1", "true"),
        ("tcp://0.0.0.0:1", "false"),
        ("tcp://0.0.0.0:1", "{ trusted = ['10.0.0.0/8'] }"),
    ] {
        assert_eq!(proxy(bind, wanted), []);
    }
}

/// Whoever reaches the adapter can publish to every topic, so the port opens beyond loopback only to certificates, or on
/// request.
#[test]
fn an_adapter_beyond_loopback_needs_client_certificates() {
    for bind in ["0.0.0.0:9100", "[::]:9100", "192.0.2.1:0"] {
        let text = format!("[adapter]\nbind = '{bind}'\n");
        let faults = parse(&text, "t.toml", Path::new(".")).unwrap_err().to_string();
        let line = faults.lines().nth(1).unwrap();
        assert!(line.contains(&format!("adapter.bind   {bind} is not a loopback address")), "{faults}");
        good(&format!("{text}insecure = true\n"));
    }
    for bind in ["127.0.0.1:9100", "127.8.9.1:9100", "[::1]:9100"] {
        good(&format!("[adapter]\nbind = '{bind}'\n"));
    }
}

/// Users without a rule that ends the list may do what no rule mentions, which is warned of unless it is written.
#[test]
fn an_open_end_of_the_rules_is_warned_of() {
    let user = "[[auth.users]]\nusername = 'u'\npassword_hash = '$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$3+oP1qKlyJ4YtBGvnjCIBA0OdNqSpNyvOpZGE0rShXQ'\n";
    let rule = |keys: &str| format!("[[auth.rules]]\neffect = 'deny'\n{keys}\n");
    let is_warned = |text: &str| advice(&good(text).1).contains(&Advice::RulesOpen);
    for (text, expected) in [
        (String::new(), false),
        (rule("action = 'publish'\ntopics = ['#']"), false),
        (user.to_owned(), true),
        (format!("auth.default = 'deny'\n{user}"), false),
        (format!("auth.default = 'allow'\n{user}"), false),
        (user.to_owned() + &rule("action = 'all'\ntopics = ['#']"), false),
        (
            user.to_owned() + &rule("action = 'all'\nclients = ['*']\nusernames = ['x', '*']\ntopics = ['a', '#']"),
            false,
        ),
        (user.to_owned() + &rule("action = 'publish'\ntopics = ['#']"), true),
        (user.to_owned() + &rule("action = 'all'\nclients = ['a*']\ntopics = ['#']"), true),
        (user.to_owned() + &rule("action = 'all'\nusernames = ['u']\ntopics = ['#']"), true),
        (user.to_owned() + &rule("action = 'all'\ntopics = ['a/#']"), true),
    ] {
        assert_eq!(is_warned(&text), expected, "{text}");
    }

    for (patterns, expected) in [
        (
            "['${clientid}']",
            r#"auth.users[0].client_ids[0]   "${clientid}" has another placeholder than "${username}""#,
        ),
        ("[]", "auth.users[0].client_ids"),
    ] {
        let text = format!("auth.default = 'deny'\n{user}client_ids = {patterns}\n");
        let faults = parse(&text, "t.toml", Path::new(".")).unwrap_err().to_string();
        assert!(faults.contains(expected), "{faults}");
    }
    good(&format!("auth.default = 'deny'\n{user}client_ids = ['${{username}}', 'x-*-${{username}}']\n"));
}

#[test]
fn a_warning_says_where() {
    let text = "[handlers.spare]\nkind = 'grpc'\nurl = 'http://h:1'\n[handlers.used]\nkind = 'grpc'\nurl = 'http://h:2'\n\
                [listeners.l]\nbind = 'tcp://127.0.0.1:1'\nhandlers = ['used', 'spare']\n\
                [handlers.idle]\nkind = 'grpc'\nurl = 'http://h:3'\n";
    let reported: Vec<String> = good(text).1.iter().map(ToString::to_string).collect();
    assert_eq!(reported, ["line 10, handlers.idle: no listener uses this handler"]);
}

/// The examples are valid, whether or not the guests are built.
#[test]
fn the_examples_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    let (examples, guests) = (dir.path().join("examples"), dir.path().join("guests/dist"));
    fs::create_dir_all(&examples).unwrap();
    fs::create_dir_all(&guests).unwrap();
    fs::create_dir_all(examples.join("conversations/jt808")).unwrap();
    for guest in ["jt808.wasm", "gt06.wasm"] {
        fs::write(guests.join(guest), b"\0asm\x0d\0\x01\0").unwrap();
    }
    for name in ["polygate.toml", "grpc.toml", "wasm.toml"] {
        let copy = examples.join(name);
        fs::copy(root().join("examples").join(name), &copy).unwrap();
        let (config, warnings) = Config::load(&copy).unwrap_or_else(|faults| panic!("{faults}"));
        assert!(!config.listeners.is_empty());
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
    }
}

/// Each line of the sample that is commented out is valid too, and where it shows a default, changes nothing.
#[test]
fn the_lines_of_the_sample_are_true() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(2100);
    for (name, content) in [
        ("gw.pem", certificate.pem().as_str()),
        ("gw.key", &key),
        ("gw-ecdsa.pem", &certificate.pem()),
        ("gw-ecdsa.key", &key),
        ("handlers-ca.pem", &certificate.pem()),
        ("handler-ca.pem", &certificate.pem()),
        ("devices-ca.pem", &certificate.pem()),
        ("devices.crl", &revoked(&certificate, 2100)),
        ("devices.psk", "meter:00112233445566778899aabbccddeeff\n"),
        ("admin.token", "0123456789abcdef\n"),
        ("deny.txt", "# nobody yet\n"),
        ("jt808.wasm", "\0asm"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    fs::create_dir_all(dir.path().join("conversations/jt808")).unwrap();
    let sample = fs::read_to_string(root().join("examples/polygate.toml")).unwrap();
    let sample = sample.replace("../guests/dist/", "");
    let (plain, _) = parse(&sample, "polygate.toml", dir.path()).unwrap();

    // A comment that looks like a key or a table is one; `urls` excludes `url`, and tls needs https.
    let is_key = |line: &str| {
        line.strip_prefix("# ").is_some_and(|rest| {
            rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
        })
    };
    let full: Vec<&str> = sample
        .lines()
        .filter(|line| !line.starts_with("url = "))
        .map(|line| if is_key(line) { &line[2..] } else { line })
        .collect();
    let full = full.join("\n").replace("http://10.", "https://10.");
    assert!(full.lines().count() > 60 && !full.lines().any(is_key));
    let (full, _) = parse(&full, "polygate.toml", dir.path()).unwrap_or_else(|faults| panic!("{faults}"));

    let (of_plain, more) = full.listeners.split_at(plain.listeners.len());
    // Which files there are is not a value with a default.
    let without_files = |listeners: &[Listener]| {
        let listeners = listeners.iter().map(|listener| Listener { files: Vec::new(), ..listener.clone() });
        format!("{:?}", listeners.collect::<Vec<_>>())
    };
    assert_eq!(without_files(of_plain), without_files(&plain.listeners));
    assert_eq!(more.len(), 2, "the listeners for TLS and DTLS");
    assert_eq!(full.data_dir, plain.data_dir);
    assert_eq!(full.drain_timeout, plain.drain_timeout);
    assert_eq!(full.broker.retained_bytes_max, plain.broker.retained_bytes_max);
    assert_eq!(full.broker.session_expiry_max, plain.broker.session_expiry_max);
    assert_eq!(full.auth.users.len(), 1);
    assert!(full.adapter.unwrap().tls.unwrap().client_ca_pem.is_some());
}

type Authority = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

/// A self-signed certificate that is valid until this year, with its key.
fn self_signed(until: i32) -> (Authority, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["gw.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key_pem = key.serialize_pem();
    (Authority::self_signed(params, key).unwrap(), key_pem)
}

/// An empty revocation list of this authority, valid until this year.
fn revoked(authority: &Authority, next: i32) -> String {
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2000, 1, 1),
        next_update: rcgen::date_time_ymd(next, 1, 1),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(authority).unwrap().pem().unwrap()
}

/// A listener with these keys of its table `tls`, and a directory with certificates and keys.
fn with_tls(keys: &str) -> (String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(2100);
    let (old, old_key) = self_signed(2001);
    for (name, content) in [
        ("gw.pem", certificate.pem().as_str()),
        ("gw.key", &key),
        ("old.pem", &old.pem()),
        ("old.key", &old_key),
        ("old.crl", &revoked(&certificate, 2001)),
        ("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"),
        ("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        ("devices.psk", "meter:0011\n# none\nother:00112233445566778899aabbccddeeff\n"),
        ("bad.psk", "meter:s3cr3t\n"),
        ("none.psk", "# none\n"),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
    }
    let text = format!(
        "[handlers.h]\nkind = \"grpc\"\nurl = \"http://127.0.0.1:1\"\n\
         [listeners.l]\nbind = \"tls://127.0.0.1:0\"\nhandlers = [\"h\"]\n[listeners.l.tls]\n{keys}\n"
    );
    (text, dir)
}

/// Certificates and keys are loaded and checked; faults have key and file, and show nothing of a key.
#[test]
fn certificates_and_keys_are_checked() {
    const PAIR: &str = "cert_file = 'gw.pem'\nkey_file = 'gw.key'";
    for (keys, expected) in [
        ("", "listeners.l.tls   has neither \"cert_file\" nor \"psk_file\""),
        ("cert_file = 'gw.pem'", "listeners.l.tls.key_file   is missing; \"cert_file\" needs it"),
        ("key_file = 'gw.key'", "listeners.l.tls.cert_file   is missing; \"key_file\" needs it"),
        ("cert_file = 'no.pem'\nkey_file = 'gw.key'", "listeners.l.tls.cert_file   \"no.pem\": no such file"),
        ("cert_file = 'gw.key'\nkey_file = 'gw.key'", "\"gw.key\": has no certificate in PEM"),
        ("cert_file = 'half.pem'\nkey_file = 'gw.key'", "\"half.pem\": is not PEM: a section has no end"),
        ("cert_file = 'gw.pem'\nkey_file = 'gw.pem'", "\"gw.pem\": has no private key in PEM"),
        ("cert_file = 'gw.pem'\nkey_file = 'old.key'", "\"old.key\": is not the key of the certificate"),
        ("cert_file = 'gw.pem'\nkey_file = 'locked.key'", "\"locked.key\": has an encrypted private key"),
        (
            "[[listeners.l.tls.certificates]]\ncert_file = 'gw.pem'\nkey_file = 'no'",
            "certificates[0].key_file   \"no\": no such file",
        ),
        (&format!("{PAIR}\nclient_cert = 'required'"), "client_ca_file   is missing; \"client_cert\" needs it"),
        (&format!("{PAIR}\ncrl_file = 'old.crl'"), "client_ca_file   is missing; \"crl_file\" needs it"),
        (&format!("{PAIR}\nclient_ca_file = 'gw.key'"), "client_ca_file   \"gw.key\": has no certificate in PEM"),
        (
            &format!("{PAIR}\nclient_ca_file = 'gw.pem'\ncrl_file = 'gw.pem'"),
            "crl_file   \"gw.pem\": has no certificate revocation list in PEM",
        ),
        (&format!("{PAIR}\nversions = ['1.1']"), "versions[0]   \"1.1\" is not known here; did you mean \"1.2\"?"),
        (
            "psk_file = 'bad.psk'",
            "psk_file   \"bad.psk\": line 1: expected \"identity:key\", with the key in hexadecimal digits",
        ),
        ("psk_file = 'none.psk'", "psk_file   \"none.psk\": has no key"),
    ] {
        let (text, dir) = with_tls(keys);
        let report = parse(&text, "test.toml", dir.path()).unwrap_err().to_string();
        assert!(report.contains(expected), "{keys}\n{report}");
        assert!(report.starts_with("test.toml has 1 fault"), "{report}");
        assert!(!report.contains("s3cr3t"));
    }

    let (text, dir) = with_tls(PAIR);
    let (config, warnings) = parse(&text, "test.toml", dir.path()).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.listeners[0].files, [dir.path().join("gw.pem"), dir.path().join("gw.key")]);
    assert!(config.listeners[0].socket.admission.tls.is_some());

    let on_tcp = text.replace("tls://", "tcp://");
    let report = parse(&on_tcp, "test.toml", dir.path()).unwrap_err().to_string();
    assert!(report.contains("listeners.l.tls   is for tls and dtls; this listener speaks tcp"), "{report}");
    let for_dtls = format!("{text}\nciphers = 'RC5'\nmtu = 200");
    let report = parse(&for_dtls.replace("tls://", "dtls://"), "test.toml", dir.path()).unwrap_err().to_string();
    for expected in [
        "listeners.l.tls.ciphers   \"RC5\": none of these cipher suites is known to OpenSSL",
        "listeners.l.tls.mtu       200 is outside 256..=16384",
    ] {
        assert!(report.contains(expected), "{report}");
    }
    let report = parse(&for_dtls, "test.toml", dir.path()).unwrap_err().to_string();
    for expected in ["tls.ciphers   is for dtls; this listener speaks tls", "tls.mtu       is for dtls; this"] {
        assert!(report.contains(expected), "{report}");
    }
    let (config, _) = parse(&text.replace("tls://", "dtls://"), "test.toml", dir.path()).unwrap();
    assert!(config.listeners[0].socket.admission.dtls.is_some());

    let without = text.split_once("[listeners.l.tls]").unwrap().0;
    let report = parse(without, "test.toml", dir.path()).unwrap_err().to_string();
    assert!(
        report.contains("listeners.l.tls   is missing; a listener on tls:// needs cert_file and key_file"),
        "{report}"
    );
}

/// Expiring and weak credentials are warned of.
#[test]
fn certificates_and_keys_that_are_not_what_they_should_be() {
    let (text, dir) = with_tls(
        "cert_file = 'old.pem'\nkey_file = 'old.key'\nclient_ca_file = 'gw.pem'\ncrl_file = 'old.crl'\n\
         psk_file = 'devices.psk'",
    );
    let found = || advice(&parse(&text, "test.toml", dir.path()).unwrap().1);
    assert_eq!(found(), [Advice::CertificateExpired, Advice::RevocationsOutdated, Advice::WeakKeys(1)]);
    for name in ["old.key", "devices.psk", "gw.pem"] {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let readable = found().into_iter().filter(|advice| *advice == Advice::KeysReadable).count();
    assert_eq!(readable, 2, "certificates are public");
}

/// The reference in docs/ has the tables that the keys themselves give.
#[test]
fn the_reference_is_true() {
    let file = root().join("docs/configuration.md");
    let page = fs::read_to_string(&file).unwrap();
    let tables = polygate::testing::config::schema::reference();
    let (head, _) = page.split_once("## `[gateway]`").expect("the tables begin with those of [gateway]");
    let wanted = format!("{head}{}", tables.trim_end().to_owned() + "\n");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(file, wanted).unwrap();
    } else {
        let differing = page.lines().zip(wanted.lines()).find(|(is, wanted)| is != wanted);
        assert_eq!(differing, None, "set UPDATE_FIXTURES to accept");
        assert_eq!(page.lines().count(), wanted.lines().count(), "set UPDATE_FIXTURES to accept");
    }
}

/// The table of limits has every key that is a limit, with its default, a metric of operations.md, and a test that exists.
#[test]
fn the_limits_are_true() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (limits, reference, operations) =
        (read("docs/limits.md"), read("docs/configuration.md"), read("docs/operations.md") + &read("docs/tls.md"));
    let sources = rust_sources(&root().join("tests")) + &rust_sources(&root().join("src"));
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut known = Vec::new();
    for row in
        limits.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| key") && !line.starts_with("| ---"))
    {
        let cells = cells(row);
        let [_, key, default, _, counted, test, _] = &cells[..] else { panic!("six columns: {row}") };
        if let [section, key] = &names(key)[..] {
            let (_, tables) = reference.split_once(&format!("\n## `{section}")).unwrap_or_else(|| panic!("{section}"));
            let row = tables
                .lines()
                .find(|line| line.starts_with(&format!("| `{key}` |")))
                .unwrap_or_else(|| panic!("{key}"));
            assert_eq!(row.split('|').nth(3).unwrap().trim(), default, "{section} {key}");
            known.push(key.clone());
        }
        for counter in names(counted) {
            assert!(operations.contains(&format!("`{counter}`")), "{counter} is not in the documents");
        }
        for test in names(test) {
            assert!(sources.contains(&format!("fn {test}(")), "no test is named {test}");
        }
        assert!(!names(test).is_empty(), "{row}");
    }
    for section in ["[gateway]", "[adapter]", "[listeners.NAME]"] {
        let (_, table) = reference.split_once(&format!("\n## `{section}`\n")).unwrap();
        let (table, _) = table.split_once("\n## ").unwrap_or((table, ""));
        for key in table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key) {
            let is_limit = ["_max", "_rate", "_timeout", "_per_address"].iter().any(|end| key.ends_with(end));
            assert!(!is_limit || known.iter().any(|known| known == key), "{section} {key} is not in docs/limits.md");
        }
    }
}

/// Every Rust file of a folder, one after the other.
fn rust_sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &rust_sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let reported = |name: &str| Config::load(&dir.path().join(name)).unwrap_err().to_string();
    assert!(reported("none.toml").ends_with("none.toml cannot be read: no such file"));
    fs::write(dir.path().join("latin1.toml"), b"node = \"\xe9\"").unwrap();
    assert!(reported("latin1.toml").ends_with("latin1.toml cannot be read: is not text in UTF-8"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Any text gives a configuration or a report with at least one line.
    #[test]
    fn no_text_panics(text in any::<String>()) {
        verdict(&text);
    }

    /// TOML of valid words in random places.
    #[test]
    fn no_table_panics(lines in prop::collection::vec(line(), 0..20)) {
        verdict(&lines.join("\n"));
    }

    /// The sample with a part removed, duplicated or overwritten.
    #[test]
    fn no_mutation_panics(at in any::<prop::sample::Index>(), length in 0usize..40, put in ".{0,8}", twice in any::<bool>()) {
        let sample = fs::read_to_string(root().join("examples/polygate.toml")).unwrap();
        let chars: Vec<char> = sample.chars().collect();
        let begin = at.index(chars.len());
        let end = (begin + length).min(chars.len());
        let again: String = if twice { chars[begin..end].iter().collect() } else { String::new() };
        let text: String = chars[..begin].iter().collect::<String>() + &put + &again + &chars[end..].iter().collect::<String>();
        verdict(&text);
    }
}

fn line() -> impl Strategy<Value = String> {
    let table = prop::sample::select(vec![
        "gateway",
        "adapter",
        "adapter.tls",
        "admin",
        "broker",
        "auth",
        "auth.users",
        "auth.rules",
        "handlers.a",
        "handlers.a.tls",
        "handlers.b",
        "listeners.a",
        "listeners.a.framing",
        "listeners.a.tls",
        "listeners.b",
        "handlers",
        "listeners",
        "secrets",
    ]);
    let key = prop::sample::select(vec![
        "node",
        "bind",
        "token",
        "kind",
        "users",
        "rules",
        "url",
        "urls",
        "tls",
        "component",
        "isolation",
        "settings",
        "handlers",
        "mountpoint",
        "idle_timeout",
        "memory_max",
        "backlog",
        "access",
        "deny_file",
        "proxy_protocol",
        "connection_rate",
        "bytes_rate",
        "effect",
        "topics",
        "password_hash",
        "username",
        "framing",
        "width",
        "max",
        "delimiter",
        "silence",
    ]);
    let value = prop_oneof![
        "\"[a-z0-9:/.$ {}#+]{0,20}\"",
        prop::sample::select(vec![
            "\"wasm\"",
            "\"grpc\"",
            "\"tcp://0.0.0.0:1\"",
            "\"http://h:1\"",
            "[\"a\"]",
            "[\"a\", \"b\"]",
            "{ env = \"X\" }",
            "{ kind = \"length\", width = 2, offset = 9 }",
            "\"delimiter\"",
            "'\\xff'",
            "{ file = \"/\" }",
            "{ trusted = [\"::/0\"] }",
            "\"18446744073709551616/s\"",
            "[\"deny 10.0.0.1/8\"]",
            "1",
            "-1",
            "1e9",
            "true",
            "[]",
            "{}",
            "[[1]]",
            "\"18446744073709551615s 1000ms\"",
            "\"99999999999EiB\"",
            "1979-05-27",
        ])
        .prop_map(str::to_owned),
    ];
    prop_oneof![
        table.clone().prop_map(|table| format!("[{table}]")),
        table.prop_map(|table| format!("[[{table}]]")),
        (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
    ]
}

fn verdict(text: &str) {
    if let Err(faults) = parse(text, "t.toml", Path::new("/base")) {
        let Faults::Found { faults: list, .. } = &faults else { panic!("the text was there") };
        assert!(!list.is_empty());
        assert_eq!(faults.to_string().lines().count(), list.len() + 1, "{faults}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parse(text: &str, name: &str, base_dir: &Path) -> Result<(Config, Vec<Warning>), Faults> {
    let env = |name: &str| {
        Some(OsString::from(match name {
            "TOKEN" => "s3cr3t-of-the-environment".to_owned(),
            "EMPTY" => String::new(),
            "HASH_OF_ARGON2I" => HASH.replace("argon2id", "argon2i"),
            "DASHBOARD_HASH" => HASH.to_owned(),
            _ => return None,
        }))
    };
    Config::parse_with(text, name, ExternalFiles { base_dir, env: &env })
}

fn good(text: &str) -> (Config, Vec<Warning>) {
    parse(text, "t.toml", Path::new("/base")).unwrap_or_else(|faults| panic!("{faults}"))
}

fn advice(warnings: &[Warning]) -> Vec<Advice> {
    warnings.iter().map(|warning| warning.advice.clone()).collect()
}
