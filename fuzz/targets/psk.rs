//! Any text as a file of pre-shared keys: one key for each line that counts, or an error that names the line and no key.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::listener::psk::parse;

fuzz_target!(|text: &str| {
    let counts = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
    let lines = text.lines().filter(counts).count();
    match parse(text) {
        Ok(keys) => assert_eq!(keys, lines),
        Err(error) => {
            assert!(error.contains("line"), "{error}");
            for key in text.lines().filter_map(|line| line.rsplit_once(':')).map(|(_, key)| key.trim()) {
                let is_key = key.len() >= 8 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
                assert!(!is_key || !error.contains(key), "{error}");
            }
        }
    }
});
