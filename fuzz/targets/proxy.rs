//! Any bytes as a PROXY header: however they are split the result is the same, and a header never takes a byte of the
//! data after it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::listener::proxy::{BYTES_MAX, Scan, scan};

/// Prefixes of headers. A fuzzer does not find them byte by byte, so most inputs have one.
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
        // An incomplete header is bounded.
        Ok(Scan::Partial) => assert!(bytes.len() < BYTES_MAX),
        Err(_) => {}
    }
});
