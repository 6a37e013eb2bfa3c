//! What a terminal's messages ask for, once it is known.

use polygate_guest::Adapter;

use super::{Phase, Terminal};
use crate::downlink::Verdict;
use crate::header::Header;
use crate::location::{self, Batch, Located, Origin};
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
            0x0002 | 0x0004 | 0x0109 => Verdict::Done,
            0x0200 => self.on_position(adapter, header, body, body),
            // Position query and vehicle control: a serial, and then the position.
            0x0201 | 0x0500 => self.on_position(adapter, header, body, body.get(2..).unwrap_or_default()),
            0x0704 => self.on_batch(adapter, header, body),
            0x0801 => self.on_multimedia(adapter, header, body),
            _ => {
                let malformed = message::undecoded(header, body, self.settings.timezone_min);
                self.pass_on(adapter, header, body, malformed)
            }
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
            self.warn_undecoded(adapter, header.id, malformed);
        }
        let Phase::Known { phone, .. } = &self.phase else {
            let text = format!("message {:#06x} of an unknown terminal is not passed on", header.id);
            self.faults.report(adapter, "unknown terminals", &text);
            return Verdict::Malformed;
        };
        let asked = if header.id == 0x1003 { self.attributes_query.take() } else { None };
        let answers = asked.or_else(|| message::answers(header.id, body));
        let json = message::json(phone, header, body, answers, malformed, self.settings.timezone_min);
        self.publish(adapter, "message", &json)
    }

    fn warn_undecoded(&mut self, adapter: &mut dyn Adapter, id: u16, malformed: Malformed) {
        let text = format!("message {id:#06x} passed on as it is: {malformed}");
        self.faults.report(adapter, &format!("undecoded {id:#06x}"), &text);
    }

    /// 0x0801: a photograph or recording, and where it was made.
    fn on_multimedia(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8]) -> Verdict {
        const BEFORE: usize = 8;
        let malformed = message::undecoded(header, body, self.settings.timezone_min);
        let place = body.get(BEFORE..BEFORE + location::FIXED).filter(|place| place.iter().any(|byte| *byte != 0));
        if let Some(place) = place.filter(|_| malformed.is_none()) {
            // What is wrong with it is told in the message, which has the whole body.
            if let Ok(Verdict::Failed) = self.publish_position(adapter, header, body, place, None) {
                return Verdict::Failed;
            }
        }
        self.pass_on(adapter, header, body, malformed)
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
        // Some terminals count wrong: what is there counts.
        for index in 1..=u16::MAX {
            if reader.0.is_empty() {
                if index <= count {
                    first_fault.get_or_insert(Malformed::Short { field: "position", needed: 2, found: 0 });
                }
                break;
            }
            let left = reader.0.len();
            let position = match reader.u16("position").and_then(|length| reader.take("position", length.into())) {
                Ok(position) if index <= count || position.len() >= location::FIXED => position,
                Err(malformed) if index <= count => {
                    first_fault.get_or_insert(malformed);
                    break;
                }
                _ => {
                    first_fault.get_or_insert(Malformed::Leftover(left));
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
        let Located { json, malformed } = location::json(origin, position, self.settings.timezone_min)?;
        let Some(malformed) = malformed else { return Ok(self.publish(adapter, "location", &json)) };
        let verdict = self.publish(adapter, "location", &json);
        // A time that is none stands in the position as it came; a place that is none only in the message.
        if verdict == Verdict::Done && !matches!(malformed, Malformed::Time(_)) {
            return Err(malformed);
        }
        self.warn_undecoded(adapter, header.id, malformed);
        Ok(verdict)
    }
}
