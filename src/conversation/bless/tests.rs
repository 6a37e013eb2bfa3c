use super::*;
use crate::conn::QoS;

fn conversation(text: &str) -> Conversation {
    Conversation::parse("test", text).unwrap()
}

fn sent(bytes: &'static [u8]) -> Effect {
    Effect::Sent(Bytes::from_static(bytes))
}

fn published(payload: &'static str) -> Effect {
    Effect::Published(Published {
        topic: "t".into(),
        qos: QoS::AtMostOnce,
        payload: Bytes::from_static(payload.as_bytes()),
    })
}

fn blessed(text: &str, greeting: &[Effect], answers: &[&[Effect]]) -> String {
    let answers = answers.iter().map(|effects| effects.to_vec()).collect();
    let happened = Happened { greeting: greeting.to_vec(), answers };
    bless(&conversation(text), &happened).unwrap().to_string()
}

/// A conversation of `>` lines alone gets its responses, each below its stimulus and above the next comment.
#[test]
fn answers_are_filled_in() {
    let text = "# a terminal\n\n# registers\n> 01\n\n# reports\n> 02\n";
    let message =
        blessed(text, &[sent(b"welcome")], &[&[sent(&[0x81]), sent(&[])], &[published("{\"n\":1}"), sent(&[0x82])]]);
    let expected = "# a terminal\n\n< \"welcome\"\n# registers\n> 01\n< 81\n\n# reports\n> 02\npublish \"t\" qos=0 json {\"n\":1}\n< 82\n";
    assert_eq!(message, expected);
}

/// Matching lines keep their manual form: wildcards, splits and place.
#[test]
fn matching_lines_stay() {
    let text = "> 01\n# two pieces\n< 81\n< ??83\n# the time differs\npublish \"t\" qos=0 json {\"at\":\"*\"}\n";
    let happened: &[Effect] = &[published("{\"at\":7}"), sent(&[0x81, 0x82, 0x83])];
    assert_eq!(blessed(text, &[], &[happened]), text);
}

/// Lines that no longer match are replaced in their place; matching neighbours stay.
#[test]
fn differing_lines_are_replaced() {
    let text = "> 01\n# an old answer\n< 81\n# a message\npublish \"t\" qos=0 json {\"at\":\"*\"}\npublish \"t\" qos=0 \"x\"\n\n> 02\n< 82\n";
    let first: &[Effect] = &[sent(&[0x91]), published("{\"at\":1}"), published("y"), published("z")];
    let expected = "> 01\n# an old answer\n< 91\n# a message\npublish \"t\" qos=0 json {\"at\":\"*\"}\npublish \"t\" qos=0 \"y\"\n\
                    publish \"t\" qos=0 \"z\"\n\n> 02\n";
    assert_eq!(blessed(text, &[], &[first, &[]]), expected);
}

/// The end of the connection by the gateway is recorded, also where the device would have closed just after it.
#[test]
fn the_end_is_recorded() {
    let closed: &[Effect] = &[sent(&[0x81]), Effect::Closed(ClosedBy::Handler)];
    assert_eq!(
        blessed("> 01\n# bye\nclose peer\n# end\n", &[], &[closed]),
        "> 01\n< 81\nclose handler\n# bye\n# end\n"
    );
    assert_eq!(blessed("> 01\n< 81\nclose handler\n", &[], &[closed]), "> 01\n< 81\nclose handler\n");

    let happened = Happened { greeting: Vec::new(), answers: vec![closed.to_vec()] };
    let error = bless(&conversation("> 01\n\n> 02\n"), &happened).unwrap_err();
    let text =
        "expected the connection to stay open until line 3 (\">\"), it was closed before: cut the conversation there";
    assert_eq!(error.to_string(), text);
}
