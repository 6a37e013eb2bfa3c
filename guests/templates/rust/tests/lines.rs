//! The handler without a gateway.

use handler::Lines;
use polygate_guest::scripted::{Call, Device, Scripted, splits};
use polygate_guest::{ErrorCode, Qos, Timer};

/// However the stream is cut, the device gets the same answers and the broker the same messages.
#[test]
fn any_cut_gives_the_same() {
    let outcome = splits::<Lines>(Scripted::new, b"HELLO meter-7\r\n21.5\n");
    assert_eq!(outcome.sent(), b"OK\nOK\n");
    let up = Call::Publish { topic: "up".into(), qos: Qos::AtLeastOnce, payload: b"21.5".to_vec() };
    assert!(outcome.calls().contains(&up));
    assert!(outcome.calls().contains(&Call::StartTimer { timer: Timer::Keepalive, interval_ms: 300_000 }));
}

/// Nothing is published for a device that has not said who it is.
#[test]
fn hello_comes_first() {
    let mut device = Device::<Lines>::connect();
    assert_eq!(device.asks(b"21.5\n22\n"), b"ERR expected HELLO <clientid>\n");
    assert!(device.adapter.is_closed() && device.adapter.published().is_empty());
}

/// Who is refused hears why.
#[test]
fn refused() {
    let mut device = Device::<Lines>::connect();
    device.adapter.refuse_authenticate = Some(ErrorCode::PermissionDenied);
    assert_eq!(device.asks(b"HELLO intruder\n"), b"ERR permission denied\n");
    assert!(device.adapter.is_closed());
}

/// What is published on `down` is a line for the device.
#[test]
fn delivers() {
    let mut device = Device::<Lines>::connect();
    device.says(b"HELLO meter-7\n");
    device.is_told("down", b"reboot");
    assert_eq!(device.adapter.sent(), b"OK\nreboot\n");
}

/// A line may have 1,024 bytes; a longer one, and silence, end the connection.
#[test]
fn ends() {
    let mut device = Device::<Lines>::connect();
    device.says(b"HELLO meter-7\n");
    assert_eq!(device.asks(&[&[b'x'; 1024][..], b"\n"].concat()), b"OK\n");
    assert!(!device.adapter.is_closed());
    device.says(&[b'x'; 1025]);
    assert!(device.adapter.is_closed());

    let mut device = Device::<Lines>::connect();
    device.is_silent();
    assert!(device.adapter.is_closed());
}

/// In the middle of a line the connection moves to the next version, and the device sees nothing of it.
#[test]
fn swapped() {
    let mut device = Device::<Lines>::connect();
    device.says(b"HELLO meter-7\n21");
    let mut device = device.swapped::<Lines>().map_err(|(_, refusal)| refusal).unwrap();
    assert_eq!(device.asks(b".5\n"), b"OK\n");
    assert_eq!(device.adapter.published(), [("up".to_owned(), b"21.5".to_vec())]);
}
