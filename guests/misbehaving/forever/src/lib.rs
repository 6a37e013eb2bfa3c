//! Echoes every byte, until the device says `forever`: then its event never returns.
//!
//! It only computes: no call to the gateway gives a chance to stop it.

use polygate_guest::{Adapter, ConnInfo, Handler, Result};

/// One connection.
pub struct Forever;

impl Handler for Forever {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        const WORD: &[u8] = b"forever";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            spin();
        }
        Ok(adapter.send(bytes)?)
    }
}

/// Counts round and round. The black box keeps the loop in the program.
fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = core::hint::black_box(turns.wrapping_add(1));
    }
}

polygate_guest::export!(Forever);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        assert_eq!(Device::<Forever>::connect().asks(b"all is well"), b"all is well");
    }
}
