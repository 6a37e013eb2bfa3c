use proptest::prelude::*;
use serde_json::{Number, Value, json};

use super::*;
use crate::conversation::Item;

fn parse(text: &str) -> Conversation {
    Conversation::parse("test", text).unwrap()
}

fn actions(text: &str) -> Vec<Action> {
    parse(text).steps().map(|(_, step)| step.action.clone()).collect()
}

/// Every kind of line is parsed.
#[test]
fn every_kind_of_line() {
    let text = "\u{feff}# heading \r\n\r\ntransport udp\r\n@0.5s >7e 0aFF \"GET\\r\\n\" 00\n@1.000250s < 7e ?? \"A\\x7e\\\"\"\n\
                publish \"a/b\" qos=2 json {\"n\":\n  [1, 2]}\ndeliver \"c\" \"\"\n\tFF\ntimer keepalive\nclose idle\n";
    let conversation = parse(text);
    let says = |action| Line::Step(Step::new(action));
    let at = |micros, action| Line::Step(Step { at: Some(Duration::from_micros(micros)), action });
    let message = |topic: &str, qos, payload| Message { topic: topic.to_owned(), qos, payload };
    let pattern = [Some(0x7e), None, Some(b'A'), Some(0x7e), Some(b'"')];
    let expected = [
        (1, Line::Comment(" heading".into())),
        (2, Line::Blank),
        (3, Line::Transport(SocketKind::Udp)),
        (4, at(500_000, Action::FromPeer(Bytes::from_static(b"\x7e\x0a\xffGET\r\n\0")))),
        (5, at(1_000_250, Action::ToPeer(Pattern::new(pattern.to_vec())))),
        (6, says(Action::Publish(message("a/b", QoS::ExactlyOnce, Payload::Json(json!({"n": [1, 2]})))))),
        (8, says(Action::Deliver(message("c", QoS::AtMostOnce, Payload::Bytes(Bytes::from_static(&[0xff])))))),
        (10, says(Action::Timer(Timer::Keepalive))),
        (11, says(Action::Close(ClosedBy::Idle))),
    ];
    let read: Vec<(u32, Line)> = conversation.items().iter().map(|item| (item.line, item.content.clone())).collect();
    assert_eq!(read, expected);
    assert_eq!(conversation.transport(), SocketKind::Udp);
}

/// The printed form: text where it is readable, hex where not, long lines continued, JSON pretty-printed when it is
/// long.
#[test]
fn the_canonical_form() {
    let long = "ab".repeat(45);
    let cases = [
        ("> 474554 0d0a", "> \"GET\\r\\n\"\n".to_owned()),
        ("> 02 \"temperature=21.5 humid=40\" 03", "> \"\\x02temperature=21.5 humid=40\\x03\"\n".to_owned()),
        ("> 02 \"t=21\" 03", "> 02743d323103\n".to_owned()),
        ("< \"ab\" ?? \"cd\"", "< \"ab\"\n  ??\n  \"cd\"\n".to_owned()),
        ("< 00??01", "< 00??01\n".to_owned()),
        (&format!("@2s > {long}"), format!("@2.000s > {}\n          {}\n", "ab".repeat(40), "ab".repeat(5))),
        ("publish \"t\" \"l1\\nl2\\n\"", "publish \"t\" qos=0 \"l1\\n\"\n  \"l2\\n\"\n".to_owned()),
        ("deliver \"t\" qos=1 \"\"", "deliver \"t\" qos=1 \"\"\n".to_owned()),
        ("publish \"温\\t\" json  1.50", "publish \"温\\t\" qos=0 json 1.5\n".to_owned()),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).to_string(), expected, "{text}");
    }
    let long = json!({"text": "x".repeat(90), "n": [1]});
    let printed = parse(&format!("publish \"t\" json {long}")).to_string();
    assert_eq!(
        printed,
        format!(
            "publish \"t\" qos=0 json\n  {{\n    \"n\": [\n      1\n    ],\n    \"text\": \"{}\"\n  }}\n",
            "x".repeat(90)
        )
    );
}

/// A conversation made in a program has the line numbers of its file.
#[test]
fn made_items_are_numbered_as_printed() {
    let line = [
        Line::Comment(" two\n lines".into()),
        Line::Blank,
        Line::Step(Step::new(Action::FromPeer(vec![0; 50].into()))),
        Line::Blank,
    ];
    let made = Conversation::new("test", line.map(Item::new).to_vec());
    let lines = |conversation: &Conversation| conversation.items().iter().map(|item| item.line).collect::<Vec<_>>();
    assert_eq!(lines(&made), [1, 3, 4, 6]);
    assert_eq!(actions(&made.to_string()), [Action::FromPeer(vec![0; 50].into())]);
}

/// At most a hundred faults of a file are reported; the others are counted.
#[test]
fn faults_are_bounded() {
    let faults = Conversation::parse("test", &"what\n".repeat(250)).unwrap_err();
    assert_eq!(faults.faults().len(), 100);
    let text = faults.to_string();
    assert!(text.starts_with("test has 250 faults:\n  line 1 column 1     expected "), "{text}");
    assert!(text.ends_with("\n  and 150 more"), "{text}");
}

#[test]
fn lines_are_bounded() {
    assert_eq!(parse(&format!("> 00\n{}", "\n".repeat(LINES_MAX - 1))).items().len(), LINES_MAX);
    let faults = Conversation::parse("test", &format!("> 00\n{}", "\n".repeat(LINES_MAX))).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "test has 1 fault:\n  line 250001 column 1   expected at most 250000 lines, found more"
    );
}

#[test]
fn deep_json_is_refused_and_not_followed() {
    let text = format!("publish \"t\" json {}", "[".repeat(100_000));
    let faults = Conversation::parse("test", &text).unwrap_err().to_string();
    assert!(faults.contains("recursion limit exceeded"), "{faults}");
}

fn bytes(min: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), min..120),
        "\\PC{1,60}".prop_map(String::into_bytes),
        "([ -~]|\r\n|\t){1,60}".prop_map(String::into_bytes),
    ]
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        any::<i64>().prop_map(Number::from),
        any::<u64>().prop_map(Number::from),
        // Up to fifteen digits: the most that every JSON parser reads back to the same double.
        (any::<i32>(), 0..6_u32)
            .prop_filter_map("finite", |(n, scale)| Number::from_f64(f64::from(n) / f64::from(10_i32.pow(scale)))),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number().prop_map(Value::Number),
        any::<String>().prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn message() -> impl Strategy<Value = Message> {
    let payload =
        prop_oneof![bytes(0).prop_map(|bytes| Payload::Bytes(bytes.into())), json_value().prop_map(Payload::Json),];
    let qos = prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)];
    (any::<String>(), qos, payload).prop_map(|(topic, qos, payload)| Message { topic, qos, payload })
}

fn action() -> impl Strategy<Value = Action> {
    let pattern = prop_oneof![
        bytes(1).prop_map(|bytes| Pattern::exact(&bytes)),
        prop::collection::vec(any::<Option<u8>>(), 1..120).prop_map(Pattern::new),
        prop::collection::vec(prop::option::weighted(0.9, b' '..=b'~'), 1..120).prop_map(Pattern::new),
    ];
    prop_oneof![
        bytes(1).prop_map(|bytes| Action::FromPeer(bytes.into())),
        pattern.prop_map(Action::ToPeer),
        message().prop_map(Action::Publish),
        message().prop_map(Action::Deliver),
        Just(Action::Timer(Timer::Keepalive)),
    ]
}

fn any_conversation() -> impl Strategy<Value = Conversation> {
    let aside = prop_oneof![Just(Line::Blank), "\\PC{0,40}".prop_map(|text| Line::Comment(text.trim_end().to_owned()))];
    let step = (prop::option::of(0..100_000_000_u64), action());
    let line = prop_oneof![
        1 => aside.prop_map(Err),
        3 => step.prop_map(Ok),
    ];
    let transport = prop::option::of(prop::sample::select(TRANSPORTS.to_vec()));
    let close = prop::option::of(prop::sample::select(ClosedBy::ALL.to_vec()));
    (transport, action(), prop::collection::vec(line, 0..20), close).prop_map(|(transport, first, lines, close)| {
        let mut items: Vec<Line> = transport.map(Line::Transport).into_iter().collect();
        items.push(Line::Step(Step::new(first)));
        let mut at = Duration::ZERO;
        items.extend(lines.into_iter().map(|line| match line {
            Err(aside) => aside,
            Ok((None, action)) => Line::Step(Step::new(action)),
            Ok((Some(later), action)) => {
                at += Duration::from_micros(later);
                Line::Step(Step { at: Some(at), action })
            }
        }));
        items.extend(close.map(|closer| Line::Step(Step::new(Action::Close(closer)))));
        Conversation::new("test", items.into_iter().map(Item::new).collect())
    })
}

/// A random line, seldom a valid one.
fn scrap() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        ">",
        "<",
        "publish",
        "deliver",
        "timer",
        "close",
        "transport",
        "keepalive",
        "peer",
        "qos=1",
        "json",
        "\"",
        "\"t\"",
        "\\x7",
        "\\",
        "7e",
        "7",
        "??",
        "?",
        "@1s",
        "@0.5s",
        "@",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\n  ",
        "#",
        "{",
        "}",
        "[1,2]",
        "null",
        "é",
        "\0",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// The printed form is parsed back to the same conversation, with its line numbers, and printed the same again.
    #[test]
    fn printed_is_read_back(conversation in any_conversation()) {
        let printed = conversation.to_string();
        let read = Conversation::parse("test", &printed);
        prop_assert_eq!(read.as_ref().map_err(ToString::to_string), Ok(&conversation));
        let read = read.unwrap();
        let lines = |conversation: &Conversation| conversation.items().iter().map(|item| item.line).collect::<Vec<_>>();
        prop_assert_eq!(lines(&read), lines(&conversation));
        prop_assert_eq!(read.to_string(), printed);
    }

    /// No text panics; faults are inside the text, and an accepted text keeps its meaning when printed.
    #[test]
    fn any_text_is_answered(text in prop_oneof![any::<String>(), scrap()]) {
        match Conversation::parse("test", &text) {
            Ok(conversation) => prop_assert_eq!(parse(&conversation.to_string()), conversation),
            Err(faults) => {
                let lines = text.split('\n').count();
                prop_assert!(!faults.faults().is_empty() && faults.faults().len() <= 100);
                for fault in faults.faults() {
                    prop_assert!((1..=lines).contains(&(fault.line as usize)), "{}", fault);
                    prop_assert!(fault.column >= 1);
                }
            }
        }
    }
}
