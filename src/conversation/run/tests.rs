use bytes::Bytes;

use super::*;
use crate::conversation::Conversation;

const TALK: &str = r#"
> 7e01
< 7e81 ?? 7e
publish "t/up" qos=1 json {"n": 1, "at": "*"}
> 7e02
< 7e82 7e
deliver "t/dn" "hello"
< "hi"
close handler
"#;

fn conversation(text: &str) -> Conversation {
    Conversation::parse("talk", text).unwrap()
}

fn run(conversation: &Conversation) -> Run<'_> {
    Run::new(conversation, Replies::Exact, Publishes::Observed)
}

fn published(payload: &'static str) -> Published {
    Published { topic: "t/up".into(), qos: QoS::AtLeastOnce, payload: Bytes::from_static(payload.as_bytes()) }
}

/// Polls until the run waits, and returns the line and the awaited action.
fn advance(run: &mut Run<'_>) -> Result<String, Mismatch> {
    loop {
        match run.poll()? {
            Next::Met(_) | Next::Skipped(_) => {}
            Next::Do(stop) => return Ok(format!("do {}", stop.line)),
            Next::Await(stop) => return Ok(format!("await {}", stop.line)),
            Next::End => return Ok("end".to_owned()),
        }
    }
}

/// A run as recorded, with the bytes split at every position.
#[test]
fn all_as_recorded() {
    let conversation = conversation(TALK);
    let mut run = run(&conversation);
    assert_eq!(advance(&mut run).unwrap(), "do 2");
    run.done();
    for byte in [0x7e, 0x81, 0x00] {
        run.handle_bytes(&[byte]);
        assert_eq!(advance(&mut run).unwrap(), "await 3");
    }
    // The end of one response, the next response and the message before it arrive at once and in another order.
    run.handle_published(published(r#"{"at":"now","n":1}"#));
    run.handle_bytes(&[0x7e, 0x7e, 0x82]);
    assert_eq!(advance(&mut run).unwrap(), "do 5");
    run.done();
    run.handle_bytes(&[0x7e]);
    assert_eq!(advance(&mut run).unwrap(), "do 7");
    run.done();
    run.handle_bytes(b"hi");
    assert_eq!(advance(&mut run).unwrap(), "await 9");
    run.handle_closed(ClosedBy::Handler);
    assert_eq!(advance(&mut run).unwrap(), "end");
    run.settle().unwrap();
    assert_eq!(advance(&mut run).unwrap(), "end");
}

/// Brings a run of `TALK` to its line 3, passes `bytes`, and returns the mismatch.
fn after_bytes(bytes: &[u8], then: impl FnOnce(&mut Run<'_>) -> Result<(), Mismatch>) -> String {
    let conversation = conversation(TALK);
    let mut run = run(&conversation);
    advance(&mut run).unwrap();
    run.done();
    run.handle_bytes(bytes);
    advance(&mut run).and_then(|_| then(&mut run)).unwrap_err().to_string()
}

/// Every mismatch has its line, the expected and the received value.
#[test]
fn mismatches_are_explained() {
    let silence = |run: &mut Run<'_>| run.handle_silence();
    let closed = |run: &mut Run<'_>| {
        run.handle_closed(ClosedBy::Gateway);
        run.poll().map(|_| ())
    };
    assert_eq!(
        after_bytes(&[0x7e, 0x80, 0x01], silence),
        "line 3: the bytes to the device differ at byte 2 of 4\n  expected  7e81??7e\n  received  7e8001"
    );
    assert_eq!(
        after_bytes(&[0x7e, 0x81, 0x01], silence),
        "line 3: expected 4 bytes to the device, received 3 in time\n  expected  7e81??7e\n  received  7e8101"
    );
    assert_eq!(
        after_bytes(&[], silence),
        "line 3: expected 4 bytes to the device, received 0 in time\n  expected  7e81??7e\n  received  nothing"
    );
    assert_eq!(
        after_bytes(&[0x7e], closed),
        "line 3: expected 4 bytes to the device, received 1 and then the end of the connection\n  expected  7e81??7e\n  received  7e"
    );
    let message = |message: Published| {
        move |run: &mut Run<'_>| {
            run.handle_published(message);
            run.poll().map(|_| ())
        }
    };
    let good = [0x7e, 0x81, 0x00, 0x7e];
    assert_eq!(
        after_bytes(&good, message(published(r#"{"at":0,"n":2}"#))),
        "line 4: another message was published: /n: expected 1, received 2\n  \
         expected  publish \"t/up\" qos=1 json {\"at\":\"*\",\"n\":1}\n  \
         received  publish \"t/up\" qos=1 json {\"at\":0,\"n\":2}"
    );
    assert_eq!(
        after_bytes(&good, message(Published { topic: "t".into(), ..published("") })),
        "line 4: another message was published: topic or qos differ\n  \
         expected  publish \"t/up\" qos=1 json {\"at\":\"*\",\"n\":1}\n  \
         received  publish \"t\" qos=1 \"\""
    );
    assert_eq!(
        after_bytes(&good, silence),
        "line 4: expected a message to be published, none was in time\n  \
         expected  publish \"t/up\" qos=1 json {\"at\":\"*\",\"n\":1}"
    );
}

#[test]
fn the_end_is_compared_too() {
    let conversation = conversation("> 00\nclose keepalive\n");
    let outcome = |then: &dyn Fn(&mut Run<'_>) -> Result<(), Mismatch>| {
        let mut run = run(&conversation);
        advance(&mut run).unwrap();
        run.done();
        then(&mut run).and_then(|()| advance(&mut run)).map_err(|mismatch| mismatch.to_string())
    };
    let by = |closer: ClosedBy| {
        move |run: &mut Run<'_>| -> Result<(), Mismatch> {
            run.handle_closed(closer);
            Ok(())
        }
    };
    assert_eq!(outcome(&by(ClosedBy::Keepalive)).unwrap(), "end");
    assert_eq!(outcome(&by(ClosedBy::Gateway)).unwrap(), "end");
    assert_eq!(
        outcome(&by(ClosedBy::Handler)).unwrap_err(),
        "line 2: expected \"close keepalive\", received \"close handler\""
    );
    assert_eq!(
        outcome(&|run| run.handle_silence()).unwrap_err(),
        "line 2: expected the connection to be closed (keepalive), it was not in time"
    );
    let unasked = |run: &mut Run<'_>| {
        run.handle_bytes(b"and more");
        by(ClosedBy::Keepalive)(run)
    };
    let text = "after line 1: expected no more bytes to the device, received 8\n  received  \"and more\"";
    assert_eq!(outcome(&unasked).unwrap_err(), text);
    let message = |run: &mut Run<'_>| {
        run.handle_published(published("x"));
        by(ClosedBy::Keepalive)(run)
    };
    let text = "after line 1: expected no more messages\n  received  publish \"t/up\" qos=1 \"x\"";
    assert_eq!(outcome(&message).unwrap_err(), text);
}

/// An early end of the connection is reported at the first line that cannot be performed.
#[test]
fn closed_before_the_device_was_done() {
    let conversation = conversation("> 00\n> 01\n");
    let mut run = run(&conversation);
    advance(&mut run).unwrap();
    run.done();
    run.handle_closed(ClosedBy::Gateway);
    let text = run.poll().unwrap_err().to_string();
    assert_eq!(text, "line 2: expected the connection to be open for \">\", found it closed (gateway)");
}

/// For load: other bytes, further bytes and unobserved messages do not matter, their number and the end do.
#[test]
fn counted_replies() {
    let conversation = conversation("> 00\n< 0102\npublish \"t\" \"x\"\nclose handler\n");
    let mut run = Run::new(&conversation, Replies::Counted, Publishes::Unobserved);
    advance(&mut run).unwrap();
    run.done();
    run.handle_bytes(&[9]);
    assert_eq!(advance(&mut run).unwrap(), "await 2");
    run.handle_bytes(&[9, 9]);
    assert_eq!(advance(&mut run).unwrap(), "await 4");
    run.handle_closed(ClosedBy::Gateway);
    assert_eq!(advance(&mut run).unwrap(), "end");
    assert_eq!(run.waiting_bytes(), 0);
}

/// A long difference is cut around the differing byte.
#[test]
fn long_bytes_are_cut() {
    let text = format!("> 00\n< {}\n", "00".repeat(300));
    let conversation = conversation(&text);
    let mut run = run(&conversation);
    advance(&mut run).unwrap();
    run.done();
    let mut received = vec![0; 300];
    received[100] = 0xff;
    run.handle_bytes(&received);
    let message = run.poll().unwrap_err().to_string();
    let zeros = |count| "00".repeat(count);
    let expected = format!(
        "line 2: the bytes to the device differ at byte 101 of 300\n  expected  … {} …\n  received  … {}ff{} …",
        zeros(64),
        zeros(16),
        zeros(47)
    );
    assert_eq!(message, expected);
}
