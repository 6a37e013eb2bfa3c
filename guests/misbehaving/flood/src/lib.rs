//! Echoes every byte, until the device says `flood`: then it sends without end.
//!
//! It does not care whether the gateway accepts what it sends, so a full queue alone does not stop it.

use polygate_guest::{Adapter, ConnInfo, Handler, Level};

/// One connection.
pub struct Flood;

impl Handler for Flood {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Self {
        Self
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        const WORD: &[u8] = b"flood";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            flood(adapter);
        }
        if let Err(refusal) = adapter.send(bytes) {
            adapter.log(Level::Warn, &format!("cannot echo {} bytes: {refusal}", bytes.len()));
        }
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
    use polygate_guest::scripted::Scripted;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        let mut adapter = Scripted::new();
        let mut echo = Flood::on_socket_created(&mut adapter, &ConnInfo::default());
        echo.on_received_bytes(&mut adapter, b"all is well");
        assert_eq!(adapter.sent(), b"all is well");
    }
}
