//! What `polygate guest new` begins a project with, in each language.

use crate::host::{Guest, Running, Seen};

const TEMPLATES: [&str; 2] = ["large/lines-c", "large/lines-go"];

/// However the stream is cut, the answers and messages are the same.
#[test]
fn any_cut() {
    for template in TEMPLATES {
        let guest = Guest::load(template);
        let stream = b"HELLO meter-7\n21.5\n\nlast\nunfinished";
        for cut in 0..=stream.len() {
            let mut device = guest.connected(&[]);
            device.receive(&stream[..cut]);
            device.receive(&stream[cut..]);
            let up = |text: &str| ("up".to_owned(), text.as_bytes().to_vec());
            let expected = Seen {
                sent: b"OK\nOK\nOK\nOK\n".to_vec(),
                published: vec![up("21.5"), up(""), up("last")],
                authenticated: vec!["meter-7".to_owned()],
                subscribed: vec!["down".to_owned()],
                keepalive_ms: Some(300_000),
                closed: false,
            };
            assert_eq!(*device.seen(), expected, "{template} cut at {cut}");
            device.deliver(b"reboot");
            assert!(device.seen().sent.ends_with(b"OK\nreboot\n"), "{template}");
            device.keepalive_timeout();
            assert!(device.seen().closed, "{template}");
            device.close();
        }
    }
}

/// Whoever does not say who it is gets a reason and the end; what comes after is not looked at.
#[test]
fn no_hello() {
    for template in TEMPLATES {
        let guest = Guest::load(template);
        for first in ["21.5", "HELLO ", "HELLO", "", "HELLO \u{fffd}", "hello x"] {
            let mut device = guest.connected(&[]);
            // A client id must be text.
            let first: Vec<u8> = first.bytes().map(|byte| if byte == 0xef { 0xff } else { byte }).collect();
            device.receive(&[&first[..], b"\n21.5\nHELLO x\n"].concat());
            let Seen { sent, published, closed, .. } = device.seen();
            assert!(sent.starts_with(b"ERR ") && sent.iter().filter(|byte| **byte == b'\n').count() == 1, "{template}");
            assert!(*closed && published.is_empty(), "{template}");
        }
    }
}

/// A line may be 1,024 bytes long, and not one more.
#[test]
fn the_longest_line() {
    for template in TEMPLATES {
        let mut device = Guest::load(template).connected(&[]);
        device.receive(b"HELLO meter-7\n");
        device.receive(&[b'x'; 1024]);
        device.receive(b"\n");
        assert_eq!(device.seen().published.len(), 1, "{template}");
        device.receive(&[b'x'; 1000]);
        assert!(!device.seen().closed, "{template}");
        device.receive(&[b'x'; 25]);
        assert!(device.seen().closed, "{template}");
    }
}

/// A new version goes on in the middle of a line, and refuses what it does not know.
#[test]
fn goes_on_in_a_new_version() {
    for template in TEMPLATES {
        let guest = Guest::load(template);
        let mut old = guest.connected(&[]);
        old.receive(b"HELLO meter-7\n21");
        let state = old.snapshot().unwrap();

        let mut new = guest.instance(&[]);
        assert_eq!(new.restore(Some(&state)), Ok(()), "{template}");
        new.receive(b".5\n");
        assert_eq!(new.seen().published, [("up".to_owned(), b"21.5".to_vec())], "{template}");

        let mut other = guest.instance(&[]);
        let unknown = crate::host::State { format: state.format + 1, bytes: state.bytes };
        let refused = Err("the state is of another version".to_owned());
        assert_eq!(other.restore(Some(&unknown)), refused, "{template}");
        assert_eq!(other.restore(None), refused, "{template}");
    }
}

/// Bytes of every kind, a few thousand lines of them, on one connection.
#[test]
fn many_lines() {
    for template in TEMPLATES {
        let mut device: Running = Guest::load(template).connected(&[]);
        device.receive(b"HELLO meter-7\n");
        for number in 0..3000_u32 {
            let line: Vec<u8> = (0..number % 700).map(|at| (at * number) as u8).filter(|byte| *byte != b'\n').collect();
            device.receive(&[&line[..], b"\n"].concat());
            let seen = device.take_seen();
            assert!(seen.sent.ends_with(b"OK\n"), "{template}");
            assert_eq!(seen.published, [("up".to_owned(), line)], "{template}");
        }
    }
}
