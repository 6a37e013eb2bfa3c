//! Devices that speak lines of text: `HELLO <clientid>` first, and then what is to be published on `up`.

use polygate_guest::framing::{self, Framing, Held};
use polygate_guest::{Adapter, ClientInfo, ConnInfo, Handler, Message, Migrate, Qos, Result, Timer};
use serde::{Deserialize, Serialize};

/// Without a bound, a device that never ends its line would fill the memory.
const LINES: framing::Lines = framing::Lines { max: 1024 };

/// The gateway ends a device that is silent for 1.5 times as long.
const KEEPALIVE_MS: u32 = 300_000;

/// One connection.
#[derive(Default, Serialize, Deserialize)]
pub struct Lines {
    unfinished: Held,
    known: bool,
}

impl Handler for Lines {
    fn on_socket_created(_: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self::default())
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, mut bytes: &[u8]) -> Result {
        // A line that is too long is an error, and an error ends the connection.
        while let Some(line) = LINES.next(&mut self.unfinished, &mut bytes)? {
            let done = if self.known {
                adapter.publish("up", Qos::AtLeastOnce, &line).map_err(Into::into)
            } else {
                self.hello(adapter, &line)
            };
            match done {
                Ok(()) => adapter.send(b"OK\n")?,
                Err(reason) => adapter.send(format!("ERR {reason}\n").as_bytes())?,
            }
            if !self.known {
                adapter.close()?;
            }
        }
        Ok(())
    }

    fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
        for message in messages {
            adapter.send(&[message.payload.as_slice(), b"\n"].concat())?;
        }
        Ok(())
    }

    fn on_timer_timeout(&mut self, adapter: &mut dyn Adapter, _: Timer) -> Result {
        Ok(adapter.close()?)
    }
}

impl Lines {
    fn hello(&mut self, adapter: &mut dyn Adapter, line: &[u8]) -> Result {
        let client_id = core::str::from_utf8(line)?.strip_prefix("HELLO ").unwrap_or_default().trim();
        if client_id.is_empty() {
            return Err(polygate_guest::Error::new("expected HELLO <clientid>"));
        }
        adapter.authenticate(ClientInfo { proto_name: "lines", proto_ver: "1", client_id, username: None }, None)?;
        adapter.start_timer(Timer::Keepalive, KEEPALIVE_MS)?;
        adapter.subscribe("down", Qos::AtLeastOnce)?;
        self.known = true;
        Ok(())
    }
}

/// A connection goes on in the next version of this handler, also in the middle of a line.
impl Migrate for Lines {
    /// Another number whenever the fields of `Lines` change.
    const FORMAT: u32 = 1;
}

polygate_guest::export!(Lines, migrate);
