//! Commands for the terminal, and what their sender hears of them.

use polygate_guest::json::{self, Value};
use polygate_guest::{Adapter, Level};

use super::{Phase, Terminal};
use crate::command::{self, Fault};

impl Terminal {
    /// A message on `jt808/<phone>/command`. What became of it is published below that topic.
    pub(super) fn on_command(&mut self, adapter: &mut dyn Adapter, payload: &[u8]) {
        let Phase::Known { address, .. } = &self.phase else {
            return adapter.log(Level::Info, "command dropped: the connection is closing");
        };
        let to = *address;
        let value = match json::parse(payload) {
            Ok(value) => value,
            Err(fault) => return self.refuse(adapter, None, &Fault::Json(fault).to_string()),
        };
        let reference = match command::reference(&value) {
            Ok(reference) => reference,
            Err(fault) => return self.refuse(adapter, None, &fault.to_string()),
        };
        let command = match command::parse(&value, to.version) {
            Ok(command) => command,
            Err(fault) => return self.refuse(adapter, reference, &fault.to_string()),
        };
        let mut refusal = None;
        let sent = self.downlink.message(&to, command.id, &command.body, |frame| {
            if refusal.is_none() {
                refusal = adapter.send(frame).err();
            }
        });
        if let Some(refusal) = refusal {
            return self.refuse(adapter, reference, &format!("cannot send: {refusal}"));
        }
        if command.id == 0x9003 {
            self.attributes_query = Some(sent.serial);
        }
        let kind = value.get("type").and_then(Value::as_text).unwrap_or_default();
        let report = json::object(|json| {
            json.text("type", kind);
            json.text("id", &format!("{:#06x}", command.id));
            json.number("serial", sent.serial);
            json.number("frames", sent.frames);
            if let Some(reference) = reference {
                json.text("ref", reference);
            }
        });
        self.publish(adapter, "command/sent", &report);
    }

    /// Says why a command was not sent: in the log, and to its sender.
    fn refuse(&mut self, adapter: &mut dyn Adapter, reference: Option<&str>, error: &str) {
        adapter.log(Level::Warn, &format!("command refused: {error}"));
        let report = json::object(|json| {
            json.text("error", error);
            if let Some(reference) = reference {
                json.text("ref", reference);
            }
        });
        self.publish(adapter, "command/error", &report);
    }
}
