//! What a terminal's messages ask for, once it is known.

use polygate_guest::Adapter;

use super::{Phase, Terminal};
use crate::downlink::Verdict;
use crate::header::Header;
use crate::location::{self, Batch, Origin};
use crate::malformed::Malformed;
use crate::message;
use crate::reader::Reader;

impl Terminal {
    /// A whole message, its sub-packages put together.
    pub(super) fn on_message(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8]) {
        let verdict = match header.id {
            _ if header.encryption != 0 => self.pass_on(adapter, header, body, None),
            0x0100 => return self.on_registration(adapter, header, body),
            0x0102 => return self.on_authentication(adapter, header, body),
            // The gateway's keepalive has already seen the bytes of a heartbeat, and the answer to 0x0004 is all it wants.
            0x0002 | 0x0004 => Verdict::Done,
            0x0200 => self.on_position(adapter, header, body, body),
            // Position query and vehicle control: a serial, and then the position.
            0x0201 | 0x0500 => self.on_position(adapter, header, body, body.get(2..).unwrap_or_default()),
            0x0704 => self.on_batch(adapter, header, body),
            _ => self.pass_on(adapter, header, body, None),
        };
        self.answer(adapter, header, body, verdict);
    }

    /// Passes a message on with its body as it is. `malformed` says why it was not decoded, if it should have been.
    ///
    /// It is then taken, whatever its form: sending it once more would not make it better.
    pub(super) fn pass_on(
        &mut self,
        adapter: &mut dyn Adapter,
        header: &Header,
        body: &[u8],
        malformed: Option<Malformed>,
    ) -> Verdict {
        if let Some(malformed) = malformed {
            self.faults.report(adapter, &format!("message {:#06x} passed on as it is: {malformed}", header.id));
        }
        let Phase::Known { phone, .. } = &self.phase else {
            self.faults
                .report(adapter, &format!("message {:#06x} of nobody in particular is not passed on", header.id));
            return Verdict::Malformed;
        };
        let json = message::json(phone, header, body, malformed, self.settings.timezone_min);
        self.publish(adapter, "message", &json)
    }

    fn on_position(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8], position: &[u8]) -> Verdict {
        match self.publish_position(adapter, header, body, position, None) {
            Ok(verdict) => verdict,
            Err(malformed) => self.pass_on(adapter, header, body, Some(malformed)),
        }
    }

    /// 0x0704: count(2) kind(1), and for each position length(2) and the body of a 0x0200.
    ///
    /// Each position is published by itself. If one is malformed, or the batch is cut off, the others still are, and the
    /// whole message is passed on beside them.
    fn on_batch(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8]) -> Verdict {
        let mut verdict = Verdict::Done;
        let mut first_fault = None;
        let mut reader = Reader(body);
        let (count, kind) = match (reader.u16("count"), reader.u8("kind")) {
            (Ok(count), Ok(kind)) => (count, kind),
            (Err(malformed), _) | (_, Err(malformed)) => return self.pass_on(adapter, header, body, Some(malformed)),
        };
        for index in 1..=count {
            let position = match reader.u16("position").and_then(|length| reader.take("position", length.into())) {
                Ok(position) => position,
                Err(malformed) => {
                    first_fault.get_or_insert(malformed);
                    break;
                }
            };
            let batch = Some(Batch { kind, index, count });
            match self.publish_position(adapter, header, body, position, batch) {
                Ok(Verdict::Done) => {}
                Ok(failed) => verdict = failed,
                Err(malformed) => {
                    first_fault.get_or_insert(malformed);
                }
            }
        }
        if first_fault.is_none() {
            first_fault = reader.finish().err();
        }
        if first_fault.is_some() {
            let passed_on = self.pass_on(adapter, header, body, first_fault);
            verdict = if passed_on == Verdict::Done { verdict } else { passed_on };
        }
        verdict
    }

    fn publish_position(
        &mut self,
        adapter: &mut dyn Adapter,
        header: &Header,
        body: &[u8],
        position: &[u8],
        batch: Option<Batch>,
    ) -> Result<Verdict, Malformed> {
        let Phase::Known { phone, .. } = &self.phase else { return Ok(Verdict::Failed) };
        let answers = message::answers(header.id, body);
        let origin = Origin { phone, id: header.id, serial: header.serial, answers, batch };
        let json = location::json(origin, position, self.settings.timezone_min)?;
        Ok(self.publish(adapter, "location", &json))
    }
}
