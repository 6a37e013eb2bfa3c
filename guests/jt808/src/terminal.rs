//! One terminal on one connection: who it is, and what happens to each of its frames.
//!
//! Owns the whole state of the connection. It ends with the connection, or closes it after a refused authentication; it
//! never sends before it is spoken to, except for commands.

mod commands;
mod identity;
mod uplink;

use polygate_guest::faults::Faults;
use polygate_guest::foreign::{self, Foreign};
use polygate_guest::framing::{Between, Found};
use polygate_guest::{Adapter, CloseReason, ConnInfo, Handler, Level, Message, Migrate, Qos, Result, Timer, migrate};
use serde::{Deserialize, Serialize};

use crate::assembly::{Assembler, AssemblerV1, Dropped, Outcome};
use crate::downlink::{Downlink, Sent, Verdict};
use crate::header::{Address, Header};
use crate::malformed::Malformed;
use crate::message::{self, Answer};
use crate::settings::Settings;
use crate::{time, wire};

/// In log lines.
const PROTOCOL: &str = "JT/T 808";

/// The handler.
#[derive(Serialize, Deserialize)]
pub struct Terminal {
    /// Each version of the handler has its own.
    #[serde(skip)]
    settings: Settings,
    phase: Phase,
    between: Between,
    assembler: Assembler,
    downlink: Downlink,
    faults: Faults,
    foreign: Foreign,
    /// The serial of a 0x9003 that no 0x1003 has answered: the standard puts none into that.
    attributes_query: Option<u16>,
}

/// The state in the first format.
#[derive(Deserialize)]
struct TerminalV1 {
    phase: Phase,
    between: Between,
    assembler: AssemblerV1,
    downlink: Downlink,
    _faults: u32,
}

/// How far a terminal has come. It only ever moves down this list.
#[derive(Serialize, Deserialize)]
enum Phase {
    /// It has sent nothing.
    Silent,
    /// It has sent something, and nobody has said yet that it may.
    Unknown {
        /// What it registered with; to be published once it may.
        registration: Option<Registration>,
    },
    /// The gateway has accepted it under this number.
    Known {
        phone: String,
        /// As its latest frame had it; commands use the same form.
        address: Address,
    },
    /// We have closed the connection; what still comes is not looked at.
    Closing,
}

#[derive(Serialize, Deserialize)]
struct Registration {
    phone: String,
    json: String,
}

impl Handler for Terminal {
    fn on_socket_created(adapter: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self {
            settings: Settings::read(adapter),
            phase: Phase::Silent,
            between: Between::default(),
            assembler: Assembler::default(),
            downlink: Downlink::default(),
            faults: Faults::default(),
            foreign: Foreign::default(),
            attributes_query: None,
        })
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, mut bytes: &[u8]) -> Result {
        if matches!(self.phase, Phase::Silent) {
            self.phase = Phase::Unknown { registration: None };
            self.start_keepalive(adapter, self.keepalive_ms().min(foreign::KEEPALIVE_MS));
        }
        if !self.foreign.framed() {
            // Until the first frame everything may be another protocol's.
            self.foreign.stray(adapter.now_ms(), bytes.len(), bytes);
        }
        loop {
            let before = bytes;
            let Some(found) = wire::FRAMES.next(&mut self.between, &mut bytes) else { break };
            match found {
                Found::Frame(raw) => self.on_frame(adapter, &raw),
                Found::Skipped(count) => {
                    let text = format!("skipped {count} bytes that are in no frame");
                    self.faults.report(adapter, "bytes outside of frames", &text);
                    if self.foreign.framed() {
                        self.foreign.stray(adapter.now_ms(), count, before);
                    }
                }
            }
        }
        let pending = match &self.between {
            Between::Outside(skipped) if self.foreign.framed() => *skipped,
            Between::Outside(_) | Between::Inside(_) => 0,
        };
        if self.foreign.bytes() + pending > 0
            && !matches!(self.phase, Phase::Closing)
            && self.foreign.ends(adapter.now_ms(), pending)
        {
            adapter.log(Level::Warn, &self.foreign.line(PROTOCOL));
            self.close(adapter);
        }
        Ok(())
    }

    fn on_timer_timeout(&mut self, adapter: &mut dyn Adapter, timer: Timer) -> Result {
        let Timer::Keepalive = timer;
        if self.foreign.framed() {
            adapter.log(Level::Info, &format!("silent for 1.5 times {} s", self.settings.keepalive_s));
        } else {
            adapter.log(Level::Warn, &self.foreign.line(PROTOCOL));
        }
        Ok(())
    }

    fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
        for message in messages {
            self.on_command(adapter, &message.payload);
        }
        Ok(())
    }

    fn on_socket_closed(mut self, adapter: &mut dyn Adapter, reason: &CloseReason) -> Result {
        let unfinished = self.between.unfinished();
        if !self.foreign.framed() && self.foreign.bytes() > 0 && *reason == CloseReason::Peer {
            adapter.log(Level::Warn, &self.foreign.line(PROTOCOL));
        } else if unfinished > 0 {
            let text = format!("{unfinished} bytes at the end are in no frame");
            self.faults.report(adapter, "bytes outside of frames", &text);
        }
        let Self { phase, assembler, mut faults, .. } = self;
        assembler.finish(|dropped| faults.report(adapter, "unfinished messages", &dropped.to_string()));
        if let Phase::Unknown { registration: Some(Registration { phone, .. }) } = phase {
            adapter.log(Level::Info, &format!("terminal {phone} registered, and left without an authentication"));
        }
        faults.finish(adapter);
        Ok(())
    }
}

impl Migrate for Terminal {
    const FORMAT: u32 = 2;

    fn upgrade(format: u32, bytes: &[u8]) -> Result<Self> {
        if format != 1 {
            return Err(migrate::Unknown { expected: Self::FORMAT, found: format }.into());
        }
        let TerminalV1 { phase, between, assembler, downlink, .. } = migrate::read(bytes)?;
        let mut foreign = Foreign::default();
        if matches!(phase, Phase::Known { .. }) {
            foreign.frame();
        }
        let (settings, faults) = (Settings::default(), Faults::default());
        Ok(Self {
            settings,
            phase,
            between,
            assembler: assembler.into(),
            downlink,
            faults,
            foreign,
            attributes_query: None,
        })
    }

    fn on_restored(&mut self, adapter: &mut dyn Adapter, _: &ConnInfo) -> Result {
        self.settings = Settings::read(adapter);
        Ok(())
    }
}

impl Terminal {
    /// The keepalive counts from the first byte: before it the listener's idle timeout bounds a silent peer, and after it
    /// one that never says who it is must not stay for ever. Until its first frame a peer has 60 s.
    fn keepalive_ms(&self) -> u32 {
        u32::from(self.settings.keepalive_s) * 1000
    }

    fn start_keepalive(&self, adapter: &mut dyn Adapter, interval_ms: u32) {
        if let Err(refusal) = adapter.start_timer(Timer::Keepalive, interval_ms) {
            adapter.log(Level::Warn, &format!("cannot start the keepalive of {interval_ms} ms: {refusal}"));
        }
    }

    fn on_frame(&mut self, adapter: &mut dyn Adapter, raw: &[u8]) {
        if matches!(self.phase, Phase::Closing) {
            return;
        }
        let content = wire::open(raw);
        let parsed = content.as_ref().map_err(|malformed| *malformed).and_then(|content| Header::parse(content));
        let (header, body) = match parsed {
            Ok(parsed) => parsed,
            Err(malformed) => {
                let text = format!("frame of {} bytes refused: {malformed}", raw.len());
                self.faults.report(adapter, "refused frames", &text);
                if self.foreign.framed() {
                    self.foreign.stray(adapter.now_ms(), raw.len() + 1, raw);
                }
                return;
            }
        };
        if !self.foreign.framed() {
            self.start_keepalive(adapter, self.keepalive_ms());
        }
        self.foreign.frame();
        if !self.admit(adapter, &header) {
            return;
        }
        if header.body_length != body.len() {
            // The checksum holds, so the terminal meant it; but where its fields lie is anybody's guess.
            let malformed = Malformed::Length { declared: header.body_length, found: body.len() };
            let verdict = self.pass_on(adapter, &header, body, Some(malformed));
            return self.answer(adapter, &header, body, verdict);
        }
        let mut dropped = Vec::new();
        if !self.assembler.is_empty() {
            self.assembler.expire(adapter.now_ms(), |message| dropped.push(message));
        }
        let Some(part) = header.part else {
            self.give_up(adapter, &dropped);
            return self.on_message(adapter, &header, body);
        };
        let now_ms = adapter.now_ms();
        let outcome = self.assembler.push(&header, part, body, now_ms, |message| dropped.push(message));
        self.give_up(adapter, &dropped);
        match outcome {
            Outcome::Whole(body) => self.on_message(adapter, &header, &body),
            // Each sub-package is a frame of its own to the terminal, which sends it again without an answer.
            Outcome::Kept => self.general_answer(adapter, &header, Verdict::Done),
            Outcome::Refused => self.general_answer(adapter, &header, Verdict::Failed),
        }
    }

    /// Says what is missing, and publishes what has come: the terminal takes it for received.
    fn give_up(&mut self, adapter: &mut dyn Adapter, dropped: &[Dropped]) {
        for message in dropped {
            self.faults.report(adapter, "unfinished messages", &message.to_string());
            if let Phase::Known { phone, .. } = &self.phase
                && !message.found.is_empty()
            {
                let json = message::unfinished_json(phone, message);
                self.publish(adapter, "message", &json);
            }
        }
    }

    /// Publishes JSON on `jt808/<phone>/<kind>`. QoS 1: a terminal forgets what it has been told is taken.
    fn publish(&mut self, adapter: &mut dyn Adapter, kind: &str, json: &str) -> Verdict {
        let Phase::Known { phone, .. } = &self.phase else { return Verdict::Failed };
        let topic = format!("jt808/{phone}/{kind}");
        match adapter.publish(&topic, Qos::AtLeastOnce, json.as_bytes()) {
            Ok(()) => Verdict::Done,
            Err(refusal) => {
                self.faults.report(adapter, "refused publishes", &format!("cannot publish on {topic}: {refusal}"));
                Verdict::Failed
            }
        }
    }

    /// Gives a message the answer that the standard has for it.
    fn answer(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8], verdict: Verdict) {
        match (message::answer(header.id), verdict) {
            (Answer::Time, Verdict::Done) => {
                let now_s = i64::try_from(adapter.now_ms() / 1000).unwrap_or(i64::MAX);
                self.send(adapter, &header.address, 0x8004, &time::to_bcd(now_s));
            }
            (Answer::Clock, Verdict::Done) => {
                let now_s = i64::try_from(adapter.now_ms() / 1000).unwrap_or(i64::MAX);
                self.send(adapter, &header.address, 0x8109, &time::to_numbers(now_s));
            }
            (Answer::Multimedia, Verdict::Done) if let Some(number) = body.get(..4) => {
                self.send(adapter, &header.address, 0x8800, number);
            }
            (Answer::Unsupported, Verdict::Done) => self.answer_generally(adapter, header, Verdict::Unsupported),
            (_, verdict) => self.answer_generally(adapter, header, verdict),
        }
    }

    /// The general answer, unless the message is an answer itself, in one frame.
    fn answer_generally(&mut self, adapter: &mut dyn Adapter, header: &Header, verdict: Verdict) {
        if message::answer(header.id) != Answer::Nothing || header.part.is_some() {
            self.general_answer(adapter, header, verdict);
        }
    }

    fn general_answer(&mut self, adapter: &mut dyn Adapter, header: &Header, verdict: Verdict) {
        let Self { downlink, faults, .. } = self;
        downlink.general_answer(header, verdict, |frame| send(adapter, faults, frame));
    }

    fn send(&mut self, adapter: &mut dyn Adapter, to: &Address, id: u16, body: &[u8]) -> Sent {
        let Self { downlink, faults, .. } = self;
        downlink.message(to, id, body, |frame| send(adapter, faults, frame))
    }

    fn close(&mut self, adapter: &mut dyn Adapter) {
        self.phase = Phase::Closing;
        if let Err(refusal) = adapter.close() {
            adapter.log(Level::Debug, &format!("cannot close: {refusal}"));
        }
    }
}

/// A frame that does not go out is the peer's fault too: it does not read.
fn send(adapter: &mut dyn Adapter, faults: &mut Faults, frame: &[u8]) {
    if let Err(refusal) = adapter.send(frame) {
        faults.report(adapter, "refused sends", &format!("cannot send a frame of {} bytes: {refusal}", frame.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection of the first format goes on, in the middle of a message.
    #[test]
    fn first_format() {
        let part = (1_u16, b"a".to_vec());
        let partial = (0x0801_u16, 2_u16, (1_u16, 10_u16), 5_u64, vec![part]);
        let phase = Phase::Unknown { registration: None };
        let state = (phase, Between::default(), vec![partial], Downlink::default(), 3_u32);
        let bytes = postcard::to_stdvec(&state).unwrap();
        let terminal = Terminal::upgrade(1, &bytes).unwrap();
        assert_eq!(terminal.assembler.bytes(), 1);
        assert!(!terminal.foreign.framed());
        assert!(Terminal::upgrade(3, &bytes).is_err());
    }
}
