//! Any bytes as a datagram of DTLS: a ClientHello and records lie within it, and what is behind a record does not change it.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use polygate::testing::listener::dtls::{hello, records};

/// The header of a record with a handshake message, and of the message. A fuzzer does not find them byte by byte.
const BEGINNING: [u8; 14] = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let mut datagram = rest.to_vec();
    if kind % 2 == 0 {
        for (byte, beginning) in datagram.iter_mut().zip(BEGINNING) {
            *byte = beginning;
        }
        // The lengths of the record and of the message, as they would be without a second record.
        if let Some(length) = datagram.len().checked_sub(13).and_then(|length| u16::try_from(length).ok()) {
            datagram[11..13].copy_from_slice(&length.to_be_bytes());
        }
    }
    let lengths = records(&Bytes::from(datagram.clone()));
    assert!(lengths.iter().all(|length| *length >= 13));
    assert!(lengths.iter().sum::<usize>() <= datagram.len());
    if let Some((cookie, length)) = hello(&datagram) {
        assert!(cookie.len() <= 255 && length + 13 <= datagram.len());
        let longer = [&datagram[..], rest].concat();
        assert_eq!(hello(&longer), Some((cookie, length)), "what follows the record");
    }
});
