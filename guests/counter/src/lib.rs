//! Answers each piece of bytes with `<version>:<count>` and a line feed, and keeps the count over a hot swap.
//!
//! | setting | what it does |
//! |---|---|
//! | `version` | what the answers begin with, 1 when it is absent |
//! | `migrate` | `refuse`: this version takes over no connection of another one |

mod counter;

use polygate_guest::{Adapter, ConnInfo, Error, Migrate, Result};

pub use counter::Counter;

impl Migrate for Counter {
    const FORMAT: u32 = 1;

    fn on_restored(&mut self, adapter: &mut dyn Adapter, _: &ConnInfo) -> Result {
        if adapter.setting("migrate").as_deref() == Some("refuse") {
            return Err(Error::new("told to refuse by the setting migrate"));
        }
        self.read_version(adapter);
        Ok(())
    }
}

polygate_guest::export!(Counter, migrate);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::{Device, Scripted};

    use super::*;

    /// The count goes on in another version, which answers under its own name.
    #[test]
    fn counts_over_a_swap() {
        let mut device = Device::<Counter>::on(Scripted::new().with_setting("version", "blue"));
        assert_eq!(device.asks(b"x"), b"blue:1\n");
        assert_eq!(device.asks(b"xyz"), b"blue:2\n");
        device.adapter.settings.insert("version".into(), "green".into());
        let mut device = device.swapped::<Counter>().unwrap();
        assert_eq!(device.asks(b"x"), b"green:3\n");
    }

    /// A version that refuses leaves the connection where it is.
    #[test]
    fn refuses() {
        let mut device = Device::<Counter>::connect();
        device.says(b"x");
        device.adapter.settings.insert("migrate".into(), "refuse".into());
        let (mut device, refusal) = device.swapped::<Counter>().unwrap_err();
        assert_eq!(refusal, "told to refuse by the setting migrate");
        assert_eq!(device.asks(b"x"), b"1:2\n");
    }
}
