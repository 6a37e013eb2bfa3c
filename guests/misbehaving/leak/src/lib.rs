//! Answers each piece of bytes with how many came, and forgets to free a mebibyte each time.
//!
//! Its state is the count alone, so in a fresh instance it goes on with next to nothing.

use polygate_guest::{Adapter, ConnInfo, Handler, Migrate, Result};
use serde::{Deserialize, Serialize};

/// One connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct Leak {
    count: u64,
}

impl Handler for Leak {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self { count: 0 })
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, _: &[u8]) -> Result {
        self.count += 1;
        core::mem::forget(core::hint::black_box(vec![0xaa_u8; 1 << 20]));
        adapter.send(format!("{}\n", self.count).as_bytes())?;
        Ok(())
    }
}

impl Migrate for Leak {
    const FORMAT: u32 = 1;
}

polygate_guest::export!(Leak, migrate);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Its count outlives the instance, what it leaks does not.
    #[test]
    fn counts_on() {
        let mut device = Device::<Leak>::connect();
        assert_eq!(device.asks(b"x"), b"1\n");
        let mut device = device.swapped::<Leak>().unwrap();
        assert_eq!(device.asks(b"x"), b"2\n");
    }
}
