//! Echoes every byte, until the device says `recurse`: then it calls itself until its stack is used up.
//!
//! The stack of a guest lies in its own memory, below its data: running over its end is an access out of bounds.

use polygate_guest::{Adapter, ConnInfo, Handler, Level};

/// One connection.
pub struct Recurse;

impl Handler for Recurse {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Self {
        Self
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        const WORD: &[u8] = b"recurse";
        if bytes.windows(WORD.len()).any(|found| found == WORD) {
            core::hint::black_box(descend(bytes.len() as u64));
        }
        if let Err(refusal) = adapter.send(bytes) {
            adapter.log(Level::Warn, &format!("cannot echo {} bytes: {refusal}", bytes.len()));
        }
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
    use polygate_guest::scripted::Scripted;

    use super::*;

    /// Without its word it is a plain echo.
    #[test]
    fn echoes() {
        let mut adapter = Scripted::new();
        let mut echo = Recurse::on_socket_created(&mut adapter, &ConnInfo::default());
        echo.on_received_bytes(&mut adapter, b"all is well");
        assert_eq!(adapter.sent(), b"all is well");
    }
}
