//! What `polygate guest new` writes works as it is: every template is built as a user would build it.

use crate::harness::Setup;
use crate::harness::recorded::{play_all, recorded};

/// The folders in guests/templates; guests/build makes large/lines-* of them.
const TEMPLATES: [&str; 4] = ["c", "go", "js", "python"];

fn guest(template: &str) -> String {
    format!("large/lines-{template}")
}

/// The conversation that each template brings along.
#[tokio::test(flavor = "multi_thread")]
async fn its_conversation() {
    for template in TEMPLATES {
        let gateway = Setup::guest(&guest(template)).start().await;
        play_all(&gateway, &recorded(&format!("guests/templates/{template}/conversations"))).await;
    }
}

/// However the lines are cut, the answers are the same.
#[tokio::test(flavor = "multi_thread")]
async fn lines_are_cut_anywhere() {
    for template in TEMPLATES {
        let guest = guest(template);
        let gateway = Setup::guest(&guest).start().await;
        let stream = "HELLO device-1\n21.5\n22\n";
        for cut in 0..=stream.len() {
            let mut device = gateway.connect().await;
            device.send(&stream[..cut]).await;
            tokio::task::yield_now().await;
            device.send(&stream[cut..]).await;
            device.expect("OK\nOK\nOK\n").await;
        }
    }
}

/// A device that does not say who it is, or is not let in, is told why, and nothing that it says afterwards counts.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_hello() {
    for template in TEMPLATES {
        let guest = guest(template);
        let gateway = Setup::guest(&guest).start().await;
        for line in ["21.5", "HELLO", "HELLO ", ""] {
            let mut device = gateway.connect().await;
            device.send(format!("{line}\nHELLO device-1\n")).await;
            let reported = String::from_utf8(device.receive_to_end().await).unwrap();
            assert!(reported.starts_with("ERR ") && reported.lines().count() == 1, "{guest} to {line:?}: {reported:?}");
        }
        let gateway = Setup::guest(&guest).auth("allow_anonymous = false\n").start().await;
        let mut device = gateway.connect().await;
        device.send("HELLO device-1\n21.5\n").await;
        let reported = String::from_utf8(device.receive_to_end().await).unwrap();
        assert!(reported.starts_with("ERR ") && reported.lines().count() == 1, "{guest}: {reported:?}");
    }
}

/// A line may have 1,024 bytes, and not one more.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_line() {
    for template in TEMPLATES {
        let guest = guest(template);
        let gateway = Setup::guest(&guest).start().await;
        let mut device = gateway.connect().await;
        device.send(format!("HELLO device-1\n{}\n", "x".repeat(1024))).await;
        device.expect("OK\nOK\n").await;
        device.send("x".repeat(1025)).await;
        device.expect_closed().await;
    }
}
