//! What a guest costs, and that it can go on for long. To be run by itself: `cargo test --test guests -- --ignored`.

use std::time::{Duration, Instant};

use polygate::testing::handler::wasm::component;

use crate::host::{Guest, file};

const RAW: [(&str, &str); 1] = [("mode", "raw")];

/// Prints size, compile time, and the cost of an instance and of a call that sends its 64 bytes back.
#[test]
#[ignore = "it measures"]
fn costs() {
    for name in ["echo", "echo-c", "large/echo-go"] {
        let bytes = file(name);
        let begun = Instant::now();
        let component = component::from_file(bytes.clone()).unwrap();
        let made = begun.elapsed();
        let begun = Instant::now();
        let guest = Guest::of_component(&component);
        let compiled = begun.elapsed();
        let instance = shortest(20, || drop(guest.connected(&RAW)));
        let mut device = guest.connected(&RAW);
        let call = shortest(20, || {
            for _ in 0..1000 {
                device.receive(&[7; 64]);
            }
            device.take_seen();
        });
        println!(
            "{name}: {} bytes; component {made:?}, compiled {compiled:?}; instance and first event {instance:?}; \
             call {:?}",
            bytes.len(),
            call / 1000
        );
    }
}

/// More calls than a collector can ignore, with garbage in each; the memory's limit would end it.
#[test]
#[ignore = "it takes a minute"]
fn two_million_calls() {
    let mut device = Guest::load("large/echo-go").connected(&[]);
    let begun = Instant::now();
    for number in 0..2_000_000_u32 {
        let request = format!("{{\"type\":3,\"topic\":\"t\",\"qos\":1,\"payload\":\"{number} {:0>200}\"}}", number % 7);
        device.receive(request.as_bytes());
        assert_eq!(device.take_seen().sent, br#"{"code":0,"type":4}"#);
    }
    println!("2,000,000 calls in {:?}", begun.elapsed());
}

fn shortest(rounds: u32, mut round: impl FnMut()) -> Duration {
    let once = || {
        let begun = Instant::now();
        round();
        begun.elapsed()
    };
    std::iter::repeat_with(once).take(rounds as usize).min().unwrap()
}
