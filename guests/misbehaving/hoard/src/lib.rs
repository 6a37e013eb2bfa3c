//! Echoes every byte, until the device says `hoard`: then it takes memory until there is none.
//!
//! Every page is written to, so that it is really there. When the memory limit refuses more, Rust's allocator gives up
//! with a trap.

use polygate_guest::{Adapter, ConnInfo, Handler, Result};

/// One connection.
pub struct Hoard;

impl Handler for Hoard {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        const WORD: &[u8] = b"hoard";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            hoard();
        }
        Ok(adapter.send(bytes)?)
    }
}

/// Takes mebibyte after mebibyte and keeps them all.
fn hoard() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(core::hint::black_box(vec![0xaa; 1 << 20]));
    }
}

polygate_guest::export!(Hoard);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        assert_eq!(Device::<Hoard>::connect().asks(b"all is well"), b"all is well");
    }
}
