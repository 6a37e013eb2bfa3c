//! Echoes every byte, until the device says `flood`: then it sends without end.
//!
//! It does not care whether the gateway accepts what it sends, so a full queue alone does not stop it.

use polygate_guest::{Adapter, ConnInfo, Handler, Result};

/// One connection.
pub struct Flood;

impl Handler for Flood {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        const WORD: &[u8] = b"flood";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            flood(adapter);
        }
        Ok(adapter.send(bytes)?)
    }
}

/// Sends 4 KiB, and again.
fn flood(adapter: &mut dyn Adapter) -> ! {
    let bytes = [0x55; 4096];
    loop {
        let _ = core::hint::black_box(adapter.send(&bytes));
    }
}

polygate_guest::export!(Flood);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        assert_eq!(Device::<Flood>::connect().asks(b"all is well"), b"all is well");
    }
}
