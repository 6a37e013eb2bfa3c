//! Echoes every byte, until the device says `forever`: then its event never returns.
//!
//! It only computes: no call to the gateway gives a chance to stop it.

use polygate_guest::{Adapter, ConnInfo, Handler, Level};

/// One connection.
pub struct Forever;

impl Handler for Forever {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Self {
        Self
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        const WORD: &[u8] = b"forever";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            spin();
        }
        if let Err(refusal) = adapter.send(bytes) {
            adapter.log(Level::Warn, &format!("cannot echo {} bytes: {refusal}", bytes.len()));
        }
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
    use polygate_guest::scripted::Scripted;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        let mut adapter = Scripted::new();
        let mut echo = Forever::on_socket_created(&mut adapter, &ConnInfo::default());
        echo.on_received_bytes(&mut adapter, b"all is well");
        assert_eq!(adapter.sent(), b"all is well");
    }
}
