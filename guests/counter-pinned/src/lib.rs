//! Answers each piece of bytes with `<version>:<count>` and a line feed, and carries nothing over a hot swap: a connection
//! stays with the version that it began with. The setting `version` is what the answers begin with, 1 when it is absent.

mod counter;

pub use counter::Counter;

polygate_guest::export!(Counter);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::{Device, Scripted};

    use super::*;

    /// It counts.
    #[test]
    fn counts() {
        let mut device = Device::<Counter>::on(Scripted::new().with_setting("version", "2"));
        device.says(b"x");
        assert_eq!(device.asks(b"x"), b"2:2\n");
    }
}
