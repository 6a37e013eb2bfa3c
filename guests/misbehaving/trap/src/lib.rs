//! Echoes every byte, until the device says how it should trap.
//!
//! | in the bytes of one event | what happens | what the host sees |
//! |---|---|---|
//! | `trap` | an `unreachable` instruction | a trap, without a word |
//! | `panic` | a Rust panic | an error line in the log, then the same trap |
//! | `wild` | a read at the last address there is | a memory access out of bounds |
//! | `close` | it traps in `on_socket_closed`, when the connection ends | a trap where nobody waits for an answer |

use polygate_guest::{Adapter, CloseReason, ConnInfo, Handler, Result};

/// One connection.
pub struct Trap {
    on_close: bool,
}

impl Handler for Trap {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self { on_close: false })
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        let told_to = |word: &[u8]| bytes.windows(word.len()).any(|found| found == word);
        if told_to(b"trap") {
            std::process::abort();
        }
        #[allow(clippy::panic, reason = "it was told to")]
        if told_to(b"panic") {
            panic!("told to panic by {} bytes", bytes.len());
        }
        if told_to(b"wild") {
            read_out_of_bounds();
        }
        self.on_close |= told_to(b"close");
        Ok(adapter.send(bytes)?)
    }

    fn on_socket_closed(self, _: &mut dyn Adapter, _: &CloseReason) -> Result {
        if self.on_close {
            std::process::abort();
        }
        Ok(())
    }
}

/// Reads where no memory is. A null reference would not do: address 0 is an ordinary one to WebAssembly.
fn read_out_of_bounds() {
    let nowhere = core::hint::black_box(usize::MAX - 7) as *const u64;
    // SAFETY: none. In the sandbox the access traps, which is what this guest is for; elsewhere it must not be called.
    core::hint::black_box(unsafe { nowhere.read_volatile() });
}

polygate_guest::export!(Trap);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Without its words it is a plain echo.
    #[test]
    fn echoes() {
        let mut device = Device::<Trap>::connect();
        assert_eq!(device.asks(b"tra p"), b"tra p");
        device.hangs_up();
    }

    /// A panic says what it was about.
    #[test]
    #[should_panic(expected = "told to panic by 5 bytes")]
    fn panics() {
        Device::<Trap>::connect().says(b"panic");
    }
}
