//! One tracker on one connection: whose sentences these are, and what happens to each.

use polygate_guest::faults::Faults;
use polygate_guest::foreign::{self, Foreign};
use polygate_guest::{
    Adapter, ClientInfo, CloseReason, ConnInfo, Handler, Level, Message, Migrate, Qos, Result, Timer,
};
use serde::{Deserialize, Serialize};

use crate::frame::{self, Found};
use crate::report::{self, Report, Sentence};

const PROTOCOL: &str = "H02";
const KEEPALIVE_S_DEFAULT: u16 = 300;
/// The longest command, in bytes.
const COMMAND_MAX: usize = 512;

/// The handler.
#[derive(Serialize, Deserialize)]
pub struct Tracker {
    #[serde(skip)]
    keepalive_s: u16,
    began: bool,
    /// The maker's letters and the number, once the gateway has let it in.
    known: Option<(String, String)>,
    closing: bool,
    held: Vec<u8>,
    /// How many bytes may still belong to the latest record.
    tail: usize,
    foreign: Foreign,
    faults: Faults,
}

impl Handler for Tracker {
    fn on_socket_created(adapter: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self {
            keepalive_s: keepalive_s(adapter),
            began: false,
            known: None,
            closing: false,
            held: Vec::new(),
            tail: 0,
            foreign: Foreign::default(),
            faults: Faults::default(),
        })
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) -> Result {
        if self.closing {
            return Ok(());
        }
        if !self.began {
            self.began = true;
            self.start_keepalive(adapter, self.keepalive_ms().min(foreign::KEEPALIVE_MS));
        }
        if !self.foreign.framed() {
            self.foreign.stray(adapter.now_ms(), bytes.len(), bytes);
        }
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let (mut at, mut stray) = (0, 0);
        while !self.closing {
            let rest = held.get(at..).unwrap_or_default();
            let found = frame::next(rest, self.tail);
            if !matches!(found, Found::Stray(_)) {
                self.on_stray(adapter, held.get(at - stray..at).unwrap_or_default());
                stray = 0;
            }
            match found {
                Found::Unfinished => break,
                Found::Stray(count) => {
                    at += count;
                    stray += count;
                }
                Found::Between(count) => {
                    at += count;
                    self.tail = self.tail.saturating_sub(count);
                }
                Found::Sentence(sentence) => {
                    at += sentence.len();
                    self.tail = 0;
                    self.on_sentence(adapter, sentence);
                }
                Found::Record(record) => {
                    at += record.len();
                    self.tail = frame::TAIL_MAX;
                    self.on_record(adapter, record);
                }
            }
        }
        if !self.closing {
            self.on_stray(adapter, held.get(at - stray..at).unwrap_or_default());
            self.held = held.get(at..).unwrap_or_default().to_vec();
            if self.foreign.bytes() > 0 && self.foreign.ends(adapter.now_ms(), 0) {
                adapter.log(Level::Warn, &self.foreign.line(PROTOCOL));
                self.close(adapter);
            }
        }
        Ok(())
    }

    fn on_timer_timeout(&mut self, adapter: &mut dyn Adapter, timer: Timer) -> Result {
        let Timer::Keepalive = timer;
        if self.foreign.framed() {
            adapter.log(Level::Info, &format!("silent for 1.5 times {} s", self.keepalive_s));
        } else {
            adapter.log(Level::Warn, &self.foreign.line(PROTOCOL));
        }
        Ok(())
    }

    /// The text of a command, such as `S20,130305,1,3,10`, goes out behind the maker and the tracker's number.
    fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
        for message in messages {
            let Some((maker, id)) = self.known.clone() else { return Ok(()) };
            let text = core::str::from_utf8(&message.payload).ok().filter(|text| {
                (1..=COMMAND_MAX).contains(&text.len())
                    && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b"*#".contains(&byte))
            });
            let report = match text {
                Some(text) => match adapter.send(format!("*{maker},{id},{text}#").as_bytes()) {
                    Ok(()) => ("command/sent", "command", text.to_owned()),
                    Err(refusal) => ("command/error", "error", format!("cannot send: {refusal}")),
                },
                None => {
                    let expected =
                        format!("expected 1 to {COMMAND_MAX} printable ASCII characters without \"*\" and \"#\"");
                    ("command/error", "error", expected)
                }
            };
            let (topic, name, text) = report;
            let json = polygate_guest::json::object(|json| json.text(name, &text));
            self.publish(adapter, topic, &json);
        }
        Ok(())
    }

    fn on_socket_closed(mut self, adapter: &mut dyn Adapter, reason: &CloseReason) -> Result {
        if !self.foreign.framed() && self.foreign.bytes() > 0 && *reason == CloseReason::Peer {
            adapter.log(Level::Warn, &self.foreign.line(PROTOCOL));
        } else if !self.held.is_empty() {
            let text = format!("{} bytes at the end are in no frame", self.held.len());
            self.faults.report(adapter, "bytes outside of frames", &text);
        }
        self.faults.finish(adapter);
        Ok(())
    }
}

impl Migrate for Tracker {
    const FORMAT: u32 = 1;

    fn on_restored(&mut self, adapter: &mut dyn Adapter, _: &ConnInfo) -> Result {
        self.keepalive_s = keepalive_s(adapter);
        Ok(())
    }
}

impl Tracker {
    fn keepalive_ms(&self) -> u32 {
        u32::from(self.keepalive_s) * 1000
    }

    fn start_keepalive(&self, adapter: &mut dyn Adapter, interval_ms: u32) {
        if let Err(refusal) = adapter.start_timer(Timer::Keepalive, interval_ms) {
            adapter.log(Level::Warn, &format!("cannot start the keepalive of {interval_ms} ms: {refusal}"));
        }
    }

    fn on_stray(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let text = format!("skipped {} bytes that are in no frame", bytes.len());
        if self.foreign.framed() {
            self.faults.report(adapter, "bytes outside of frames", &text);
            self.foreign.stray(adapter.now_ms(), bytes.len(), bytes);
        } else {
            // They are counted as they come, and may be another protocol's, which has a line of its own.
            adapter.log(Level::Debug, &text);
        }
    }

    fn on_sentence(&mut self, adapter: &mut dyn Adapter, bytes: &[u8]) {
        let Some(sentence) = Sentence::parse(bytes) else {
            if self.foreign.framed() {
                self.foreign.stray(adapter.now_ms(), bytes.len(), bytes);
            }
            return self.faults.report(
                adapter,
                "broken sentences",
                "expected a maker of two letters and a number, found others",
            );
        };
        let Some(id) = self.admit(adapter, sentence.maker, sentence.id) else { return };
        let report = sentence.report(&id);
        let published = self.report(adapter, sentence.kind, &report);
        let now_s = i64::try_from(adapter.now_ms() / 1000).unwrap_or(i64::MAX);
        if let Some(answer) = sentence.answer(&id, now_s).filter(|_| published)
            && let Err(refusal) = adapter.send(answer.as_bytes())
        {
            self.faults.report(adapter, "refused sends", &format!("cannot send an answer: {refusal}"));
        }
    }

    fn on_record(&mut self, adapter: &mut dyn Adapter, record: &[u8]) {
        let Some(id) = report::record_id(record).and_then(|id| self.admit(adapter, "HQ", &id)) else { return };
        self.report(adapter, "record", &report::record(&id, record));
    }

    fn report(&mut self, adapter: &mut dyn Adapter, kind: &str, report: &Report) -> bool {
        if let Some(why) = report.undecoded {
            self.faults.report(adapter, &format!("undecoded {kind}"), &format!("{kind} is passed on as it is: {why}"));
        }
        self.publish(adapter, report.topic.name(), &report.json)
    }

    /// Whose frame it is, if it may go on. Some trackers leave their number out once they have said it.
    fn admit(&mut self, adapter: &mut dyn Adapter, maker: &str, id: &str) -> Option<String> {
        if !self.foreign.framed() {
            self.start_keepalive(adapter, self.keepalive_ms());
        }
        self.foreign.frame();
        if let Some((_, known)) = &self.known {
            let known = known.clone();
            if id.is_empty() || known == id {
                return Some(known);
            }
            self.faults.report(adapter, "other trackers", &format!("a frame of {id} is dropped: this is {known}"));
            return None;
        }
        if id.is_empty() {
            self.faults.report(adapter, "frames without a number", "expected a number in the first frame, found none");
            return None;
        }
        let client = ClientInfo { proto_name: "H02", proto_ver: "1", client_id: id, username: None };
        if let Err(refusal) = adapter.authenticate(client, None) {
            adapter.log(Level::Info, &format!("{id} is refused: {refusal}"));
            self.close(adapter);
            return None;
        }
        let filter = format!("h02/{id}/command");
        if let Err(refusal) = adapter.subscribe(&filter, Qos::AtLeastOnce) {
            adapter.log(Level::Warn, &format!("cannot subscribe to {filter}: {refusal}"));
        }
        self.known = Some((maker.to_owned(), id.to_owned()));
        Some(id.to_owned())
    }

    fn publish(&mut self, adapter: &mut dyn Adapter, end: &str, json: &str) -> bool {
        let Some((_, id)) = &self.known else { return false };
        let topic = format!("h02/{id}/{end}");
        match adapter.publish(&topic, Qos::AtLeastOnce, json.as_bytes()) {
            Ok(()) => true,
            Err(refusal) => {
                self.faults.report(adapter, "refused publishes", &format!("cannot publish on {topic}: {refusal}"));
                false
            }
        }
    }

    fn close(&mut self, adapter: &mut dyn Adapter) {
        self.closing = true;
        self.held = Vec::new();
        if let Err(refusal) = adapter.close() {
            adapter.log(Level::Debug, &format!("cannot close: {refusal}"));
        }
    }
}

fn keepalive_s(adapter: &mut dyn Adapter) -> u16 {
    let Some(text) = adapter.setting("keepalive_s") else { return KEEPALIVE_S_DEFAULT };
    text.parse().ok().filter(|seconds| *seconds > 0).unwrap_or_else(|| {
        adapter.log(
            Level::Error,
            &format!("setting keepalive_s: expected 1 to 65535, found {text:?}; using {KEEPALIVE_S_DEFAULT}"),
        );
        KEEPALIVE_S_DEFAULT
    })
}
