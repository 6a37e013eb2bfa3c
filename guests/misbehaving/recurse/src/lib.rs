//! Echoes every byte, until the device says `recurse`: then it calls itself until its stack is used up.
//!
//! The stack of a guest lies in its own memory, below its data: running over its end is an access out of bounds.

use polygate_guest::{Adapter, ConnInfo, Handler, Result};

/// One connection.
pub struct Recurse;

impl Handler for Recurse {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self)
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        const WORD: &[u8] = b"recurse";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            core::hint::black_box(descend(bytes.len() as u64));
        }
        Ok(adapter.send(bytes)?)
    }
}

/// Never reaches its end. What it does with the result keeps the call from becoming a jump.
fn descend(depth: u64) -> u64 {
    let here = core::hint::black_box([depth; 8]);
    if depth == u64::MAX {
        return depth;
    }
    descend(depth + 1).wrapping_add(core::hint::black_box(here).iter().sum())
}

polygate_guest::export!(Recurse);

#[cfg(test)]
mod tests {
    use polygate_guest::scripted::Device;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        assert_eq!(Device::<Recurse>::connect().asks(b"all is well"), b"all is well");
    }
}
