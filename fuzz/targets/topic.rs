//! Pairs of topic filters and a topic name: matching, covering and overlapping agree with each other.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::topic::{covers, filter, is_name, matches, overlaps};

fuzz_target!(|input: &str| {
    let mut lines = input.splitn(3, '\n');
    let (Some(one), Some(other), Some(name)) = (lines.next(), lines.next(), lines.next()) else { return };
    let (Some(one), Some(other)) = (filter(one), filter(other)) else { return };
    assert!(covers(one, one) && overlaps(one, one));
    assert_eq!(overlaps(one, other), overlaps(other, one));
    if covers(one, other) {
        assert!(overlaps(one, other), "{one} {other}");
    }
    if is_name(name) {
        assert!(matches(name, name), "a name without wildcards is a filter");
        if matches(other, name) {
            assert!(!covers(one, other) || matches(one, name), "{one} covers {other}, which matches {name}");
            assert!(!matches(one, name) || overlaps(one, other), "{one} and {other} match {name}");
        }
    }
});
