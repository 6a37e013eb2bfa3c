//! One connection: of a vehicle, or of a platform that passes on what its vehicles send.

use polygate_guest::faults::Faults;
use polygate_guest::foreign::{self, Foreign};
use polygate_guest::json::{self, Value};
use polygate_guest::{
    Adapter, ClientInfo, CloseReason, ConnInfo, ErrorCode, Handler, Level, Message, Migrate, Qos, Result, Timer,
};
use serde::{Deserialize, Serialize};

use crate::frame::{self, COMMAND, FAILURE, Found, Frame, SUCCESS};
use crate::report;

const PROTOCOL: &str = "GB/T 32960";
const KEEPALIVE_S_DEFAULT: u16 = 300;
/// The longest data of a command, in bytes.
const COMMAND_DATA_MAX: usize = 4096;

const LOGIN: u8 = 1;
const REPORT: u8 = 2;
const REPORT_AGAIN: u8 = 3;
const LOGOUT: u8 = 4;
const PLATFORM_LOGIN: u8 = 5;
const PLATFORM_LOGOUT: u8 = 6;
const HEARTBEAT: u8 = 7;
const CLOCK: u8 = 8;

/// The handler.
#[derive(Serialize, Deserialize)]
pub struct Vehicle {
    #[serde(skip)]
    keepalive_s: u16,
    began: bool,
    known: Option<Peer>,
    closing: bool,
    held: Vec<u8>,
    foreign: Foreign,
    faults: Faults,
}

/// Whom the gateway has let in.
#[derive(Clone, Serialize, Deserialize)]
enum Peer {
    Vehicle(String),
    /// Its vehicles have numbers of their own.
    Platform(String),
}

impl Handler for Vehicle {
    fn on_socket_created(adapter: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        Ok(Self {
            keepalive_s: keepalive_s(adapter),
            began: false,
            known: None,
            closing: false,
            held: Vec::new(),
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
            let found = frame::next(rest);
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
                Found::Corrupt(count) => {
                    at += count;
                    self.faults.report(adapter, "wrong checksums", "a frame was refused: its checksum is wrong");
                    if self.foreign.framed() {
                        self.foreign.stray(adapter.now_ms(), count, rest);
                    }
                }
                Found::Frame(frame, count) => {
                    at += count;
                    if !self.foreign.framed() {
                        self.start_keepalive(adapter, self.keepalive_ms());
                    }
                    self.foreign.frame();
                    self.on_frame(adapter, &frame);
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

    fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
        for message in messages {
            self.on_command(adapter, &message.payload);
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

impl Migrate for Vehicle {
    const FORMAT: u32 = 1;

    fn on_restored(&mut self, adapter: &mut dyn Adapter, _: &ConnInfo) -> Result {
        self.keepalive_s = keepalive_s(adapter);
        Ok(())
    }
}

impl Vehicle {
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

    fn on_frame(&mut self, adapter: &mut dyn Adapter, frame: &Frame<'_>) {
        let vin = report::text(frame.vin);
        if !vin.bytes().all(|byte| byte.is_ascii_alphanumeric()) || vin.is_empty() {
            return self.faults.report(adapter, "wrong VINs", "expected a VIN of letters and digits, found others");
        }
        if let Err(refusal) = self.admit(adapter, frame, &vin) {
            adapter.log(Level::Info, &format!("{vin} is refused: {refusal}"));
            self.answer(adapter, frame, FAILURE, frame.data.get(..6).unwrap_or_default());
            return self.close(adapter);
        }
        if frame.response != COMMAND {
            // What a vehicle answers to a command.
            let json = report::message(&vin, frame.command, frame.response, frame.encryption, frame.data, None);
            self.publish(adapter, &vin, "message", &json);
            return;
        }
        let taken = match frame.command {
            HEARTBEAT => true,
            CLOCK => {
                let now_s = i64::try_from(adapter.now_ms() / 1000).unwrap_or(i64::MAX);
                return self.answer(adapter, frame, SUCCESS, &report::clock(now_s));
            }
            _ if frame.encryption != 1 => self.pass_on(adapter, frame, &vin, None),
            LOGIN | LOGOUT | PLATFORM_LOGIN | PLATFORM_LOGOUT => match report::session(&vin, frame.command, frame.data)
            {
                Ok(json) => {
                    let end = if matches!(frame.command, LOGIN | PLATFORM_LOGIN) { "login" } else { "logout" };
                    self.publish(adapter, &vin, end, &json)
                }
                Err(malformed) => self.pass_on(adapter, frame, &vin, Some(&malformed.to_string())),
            },
            REPORT | REPORT_AGAIN => self.on_report(adapter, frame, &vin),
            _ => self.pass_on(adapter, frame, &vin, Some("expected a command that is known here, found another one")),
        };
        // Refused by the broker it is not acknowledged as taken, so that it comes again (0x03).
        let response = if taken { SUCCESS } else { FAILURE };
        let time = if matches!(frame.command, HEARTBEAT) { &[] } else { frame.data.get(..6).unwrap_or_default() };
        self.answer(adapter, frame, response, time);
    }

    fn on_report(&mut self, adapter: &mut dyn Adapter, frame: &Frame<'_>, vin: &str) -> bool {
        match report::report(vin, frame.command == REPORT_AGAIN, frame.data) {
            Ok(report) => {
                if let Some(malformed) = report.malformed {
                    let text = format!("a report is passed on as it is from a place on: {malformed}");
                    self.faults.report(adapter, "undecoded items", &text);
                }
                let taken = self.publish(adapter, vin, "data", &report.data);
                taken && report.position.is_none_or(|position| self.publish(adapter, vin, "position", &position))
            }
            Err(malformed) => self.pass_on(adapter, frame, vin, Some(&malformed.to_string())),
        }
    }

    fn pass_on(&mut self, adapter: &mut dyn Adapter, frame: &Frame<'_>, vin: &str, error: Option<&str>) -> bool {
        if let Some(error) = error {
            let kind = format!("undecoded {:#04x}", frame.command);
            self.faults.report(adapter, &kind, &format!("frame {:#04x} is passed on as it is: {error}", frame.command));
        }
        let json = report::message(vin, frame.command, frame.response, frame.encryption, frame.data, error);
        self.publish(adapter, vin, "message", &json)
    }

    /// Lets a vehicle in by its VIN, and a platform by its user name and password. A vehicle may begin without a login.
    fn admit(&mut self, adapter: &mut dyn Adapter, frame: &Frame<'_>, vin: &str) -> Result<(), ErrorCode> {
        match &self.known {
            Some(Peer::Platform(_)) => return Ok(()),
            Some(Peer::Vehicle(known)) if known == vin => return Ok(()),
            Some(Peer::Vehicle(_)) => return Err(ErrorCode::PermissionDenied),
            None => {}
        }
        let client = |id| ClientInfo { proto_name: "GB/T 32960", proto_ver: "2016", client_id: id, username: Some(id) };
        if frame.command == PLATFORM_LOGIN {
            let platform = report::platform(frame.data).map_err(|_| ErrorCode::BadParams)?;
            adapter.authenticate(client(&platform.user), Some(&platform.password))?;
            self.known = Some(Peer::Platform(platform.user));
            return Ok(());
        }
        adapter.authenticate(ClientInfo { username: None, ..client(vin) }, None)?;
        let filter = format!("gb32960/{vin}/command");
        if let Err(refusal) = adapter.subscribe(&filter, Qos::AtLeastOnce) {
            adapter.log(Level::Warn, &format!("cannot subscribe to {filter}: {refusal}"));
        }
        self.known = Some(Peer::Vehicle(vin.to_owned()));
        Ok(())
    }

    /// `{"command":"0x80","data":"..."}`: a frame for the vehicle, with the data in hexadecimal.
    fn on_command(&mut self, adapter: &mut dyn Adapter, payload: &[u8]) {
        let Some(Peer::Vehicle(vin)) = self.known.clone() else { return };
        let outcome = command(payload).and_then(|(number, data)| {
            let mut padded = vin.clone().into_bytes();
            padded.resize(17, 0);
            let frame = frame::seal(number, COMMAND, &padded, &data);
            adapter.send(&frame).map_err(|refusal| format!("cannot send: {refusal}"))?;
            Ok(number)
        });
        let (end, json) = match outcome {
            Ok(number) => ("command/sent", json::object(|json| json.text("command", &format!("{number:#04x}")))),
            Err(error) => ("command/error", json::object(|json| json.text("error", &error))),
        };
        self.publish(adapter, &vin, end, &json);
    }

    fn answer(&mut self, adapter: &mut dyn Adapter, frame: &Frame<'_>, response: u8, data: &[u8]) {
        if let Err(refusal) = adapter.send(&frame::seal(frame.command, response, frame.vin, data)) {
            self.faults.report(adapter, "refused sends", &format!("cannot send an answer: {refusal}"));
        }
    }

    fn publish(&mut self, adapter: &mut dyn Adapter, vin: &str, end: &str, json: &str) -> bool {
        let topic = format!("gb32960/{vin}/{end}");
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

fn command(payload: &[u8]) -> Result<(u8, Vec<u8>), String> {
    let value = json::parse(payload).map_err(|fault| fault.to_string())?;
    let digits = |name: &str| value.get(name).and_then(Value::as_text);
    let number = digits("command").and_then(|text| u8::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    let number = number.filter(|number| matches!(number, 0x80..=0xfe));
    let data = digits("data").or(Some("")).and_then(unhex).filter(|data| data.len() <= COMMAND_DATA_MAX);
    match (number, data) {
        (Some(number), Some(data)) => Ok((number, data)),
        (None, _) => Err("member \"command\": expected \"0x80\" to \"0xfe\"".to_owned()),
        (_, None) => Err(format!("member \"data\": expected at most {COMMAND_DATA_MAX} bytes in hexadecimal")),
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some((nibble(*high)? << 4 | nibble(*low)?) as u8)).collect();
    if rest.is_empty() { bytes } else { None }
}

fn keepalive_s(adapter: &mut dyn Adapter) -> u16 {
    let Some(text) = adapter.setting("keepalive_s") else { return KEEPALIVE_S_DEFAULT };
    text.parse().ok().filter(|seconds| *seconds > 0).unwrap_or_else(|| {
        let expected = "setting keepalive_s: expected 1 to 65535";
        adapter.log(Level::Error, &format!("{expected}, found {text:?}; using {KEEPALIVE_S_DEFAULT}"));
        KEEPALIVE_S_DEFAULT
    })
}
