//! `polygate demo`.

use tokio::process::Command;

use crate::program::within;

/// The demo succeeds: every recorded terminal is served as recorded, every position arrives over MQTT.
#[tokio::test]
async fn the_tour() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_polygate"));
    demo.args(["--log", "error", "demo", "--once"]).kill_on_drop(true);
    let output = within("the end of the tour", demo.output()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("65 of 65 positions arrived over MQTT"), "{text}");
    assert!(text.contains("13800138000    2026-01-15T08:30:00Z   31.23042 N  121.47370 E"), "{text}");
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
