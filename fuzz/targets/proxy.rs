//! Any bytes as the beginning of a connection behind a balancer: however they are cut the verdict is the same, and a header never
//! takes a byte of what stands behind it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::listener::proxy::{BYTES_MAX, Scan, scan};

/// How headers begin. Nothing leads there byte by byte, so most inputs have it.
const BEGINNINGS: [&[u8]; 4] = [b"", b"PROXY ", b"PROXY TCP6 ", b"\r\n\r\n\0\r\nQUIT\n"];

fuzz_target!(|input: &[u8]| {
    let Some((beginning, rest)) = input.split_first() else { return };
    let bytes = &[BEGINNINGS[usize::from(*beginning) % BEGINNINGS.len()], rest].concat();
    let verdict = scan(bytes);
    if let Err(malformed) = &verdict {
        assert!(malformed.to_string().contains("expected"));
    }
    for cut in 0..bytes.len() {
        match (scan(&bytes[..cut]), &verdict) {
            (Ok(Scan::Partial), _) | (Err(_), Err(_)) => {}
            (Ok(whole), verdict) => assert_eq!(Ok(&whole), verdict.as_ref()),
            (Err(malformed), Ok(verdict)) => panic!("{malformed} is no fault: {verdict:?}"),
        }
    }
    match verdict {
        Ok(Scan::Whole { len, .. }) => {
            assert!(len <= bytes.len().min(BYTES_MAX));
            assert_eq!(scan(&bytes[..len - 1]), Ok(Scan::Partial));
        }
        // Whoever waits for more has a bound on what he waits for.
        Ok(Scan::Partial) => assert!(bytes.len() < BYTES_MAX),
        Err(_) => {}
    }
});
