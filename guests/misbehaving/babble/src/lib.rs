//! Echoes every byte, until the device says `babble`: then it logs without end.
//!
//! Each line is 1 KiB at the level "error", so that no filter stands between it and the log.

use polygate_guest::{Adapter, ConnInfo, Handler, Level, Result};

/// One connection.
pub struct Babble;

impl Handler for Babble {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        const WORD: &[u8] = b"babble";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            babble(adapter);
        }
        Ok(adapter.send(bytes)?)
    }
}

/// Says the same for ever.
fn babble(adapter: &mut dyn Adapter) -> ! {
    let line = "babble ".repeat(1024 / 7);
    loop {
        adapter.log(Level::Error, &line);
    }
}

polygate_guest::export!(Babble);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        assert_eq!(Device::<Babble>::connect().asks(b"all is well"), b"all is well");
    }
}
