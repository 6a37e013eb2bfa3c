//! Echoes every byte, until the device says `babble`: then it logs without end.
//!
//! Each line is 1 KiB at the level "error", so that no filter stands between it and the log.

use polygate_guest::{Adapter, ConnInfo, Handler, Level};

/// One connection.
pub struct Babble;

impl Handler for Babble {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Self {
        Self
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        const WORD: &[u8] = b"babble";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            babble(adapter);
        }
        if let Err(refusal) = adapter.send(bytes) {
            adapter.log(Level::Warn, &format!("cannot echo {} bytes: {refusal}", bytes.len()));
        }
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
    use polygate_guest::scripted::Scripted;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        let mut adapter = Scripted::new();
        let mut echo = Babble::on_socket_created(&mut adapter, &ConnInfo::default());
        echo.on_received_bytes(&mut adapter, b"all is well");
        assert_eq!(adapter.sent(), b"all is well");
    }
}
