//! The JSON echo protocol of ExProto's own suite: what a device writes as JSON is done, and the result comes back.
//!
//! One object is one request, with nothing between them; several may arrive at once, and one may arrive in parts. The
//! frames are listed in this folder's `README.md`. With the setting `mode = "raw"` there is no protocol at all: every
//! chunk goes back as it came, which is what a measurement wants.

mod objects;

use polygate_guest::json::{self, Value};
use polygate_guest::{
    Adapter, ClientInfo, CloseReason, ConnInfo, ErrorCode, Handler, Level, Message, Migrate, Qos, Result, Timer,
};
use serde::{Deserialize, Serialize};

pub use objects::{Broken, OBJECT_MAX, Objects};

const CONNECT: u64 = 1;
const CONNACK: u8 = 2;
const PUBLISH: u64 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u64 = 5;
const SUBACK: u8 = 6;
const UNSUBSCRIBE: u64 = 7;
const UNSUBACK: u8 = 8;
const DISCONNECT: u64 = 9;
const RAW_PUBLISH: u64 = 10;

/// One connection.
#[derive(Serialize, Deserialize)]
pub enum Echo {
    /// Every chunk goes back as it came.
    Raw,
    /// Requests and answers in JSON.
    Json(Objects),
}

impl Handler for Echo {
    fn on_socket_created(adapter: &mut dyn Adapter, _: &ConnInfo) -> Result<Self> {
        match adapter.setting("mode").as_deref() {
            Some("raw") => return Ok(Self::Raw),
            None | Some("json") => {}
            Some(other) => adapter.log(
                Level::Error,
                &format!("setting mode: expected \"json\" or \"raw\", found \"{other}\"; using \"json\""),
            ),
        }
        Ok(Self::Json(Objects::default()))
    }

    fn on_received_bytes(&mut self, adapter: &mut dyn Adapter, mut bytes: &[u8]) -> Result {
        match self {
            Self::Raw => adapter.send(bytes)?,
            Self::Json(objects) => {
                while let Some(object) = objects.next(&mut bytes)? {
                    on_object(adapter, &object)?;
                }
            }
        }
        Ok(())
    }

    fn on_received_messages(&mut self, adapter: &mut dyn Adapter, messages: &[Message]) -> Result {
        for message in messages {
            let frame = json::object(|frame| {
                frame.number("type", 3);
                frame.text("topic", &message.topic);
                frame.number("qos", message.qos.number());
                // JSON has no bytes: what is not UTF-8 arrives with U+FFFD in its place.
                frame.text("payload", &String::from_utf8_lossy(&message.payload));
            });
            adapter.send(frame.as_bytes())?;
        }
        Ok(())
    }

    fn on_socket_closed(self, adapter: &mut dyn Adapter, reason: &CloseReason) -> Result {
        adapter.log(Level::Debug, &format!("closed: {reason}"));
        Ok(())
    }
}

impl Migrate for Echo {
    const FORMAT: u32 = 1;
}

polygate_guest::export!(Echo, migrate);

fn on_object(adapter: &mut dyn Adapter, object: &[u8]) -> Result<(), ErrorCode> {
    let request = match json::parse(object) {
        Ok(request) => request,
        Err(fault) => {
            adapter.log(Level::Warn, &fault.to_string());
            return Ok(());
        }
    };
    let (kind, done) = match request.get("type").and_then(Value::as_u64) {
        Some(CONNECT) => (CONNACK, connect(adapter, &request)),
        Some(PUBLISH) => {
            (PUBACK, publication(&request).and_then(|(topic, qos, payload)| adapter.publish(topic, qos, payload)))
        }
        Some(RAW_PUBLISH) => {
            (PUBACK, publication(&request).and_then(|(topic, qos, payload)| adapter.raw_publish(topic, qos, payload)))
        }
        Some(SUBSCRIBE) => {
            (SUBACK, text(&request, "topic").and_then(|filter| adapter.subscribe(filter, qos(&request)?)))
        }
        Some(UNSUBSCRIBE) => (UNSUBACK, text(&request, "topic").and_then(|filter| adapter.unsubscribe(filter))),
        Some(DISCONNECT) => return adapter.close(),
        other => {
            let found = other.map_or_else(|| "none".to_owned(), |kind| kind.to_string());
            adapter.log(Level::Warn, &format!("expected a type of 1, 3, 5, 7, 9 or 10, found {found}"));
            return Ok(());
        }
    };
    answer(adapter, kind, done)?;
    if kind == CONNACK && done.is_err() { adapter.close() } else { Ok(()) }
}

fn connect(adapter: &mut dyn Adapter, request: &Value<'_>) -> Result<(), ErrorCode> {
    let client = request.get("clientinfo").unwrap_or(&Value::Null);
    let field = |name| client.get(name).and_then(Value::as_text);
    let info = ClientInfo {
        proto_name: field("proto_name").unwrap_or_default(),
        proto_ver: field("proto_ver").unwrap_or_default(),
        client_id: field("clientid").unwrap_or_default(),
        username: field("username"),
    };
    adapter.authenticate(info, request.get("password").and_then(Value::as_text))?;
    match client.get("keepalive").and_then(Value::as_u64) {
        None | Some(0) => Ok(()),
        Some(keepalive_s) => {
            let interval_ms = keepalive_s.checked_mul(1000).and_then(|ms| u32::try_from(ms).ok());
            adapter.start_timer(Timer::Keepalive, interval_ms.ok_or(ErrorCode::BadParams)?)
        }
    }
}

/// Topic, QoS (0 when absent) and payload of a PUBLISH.
fn publication<'a>(request: &'a Value<'_>) -> Result<(&'a str, Qos, &'a [u8]), ErrorCode> {
    Ok((text(request, "topic")?, qos(request)?, text(request, "payload")?.as_bytes()))
}

fn text<'a>(request: &'a Value<'_>, name: &str) -> Result<&'a str, ErrorCode> {
    request.get(name).and_then(Value::as_text).ok_or(ErrorCode::BadParams)
}

fn qos(request: &Value<'_>) -> Result<Qos, ErrorCode> {
    let Some(number) = request.get("qos") else { return Ok(Qos::AtMostOnce) };
    number.as_u64().and_then(Qos::from_number).ok_or(ErrorCode::BadParams)
}

/// Answers a request: code 0 when it was done, 1 when it was not, and then the log says why.
fn answer(adapter: &mut dyn Adapter, kind: u8, done: Result<(), ErrorCode>) -> Result<(), ErrorCode> {
    if let Err(refusal) = done {
        adapter.log(Level::Info, &format!("answering type {kind} with code 1: {refusal}"));
    }
    let frame = json::object(|frame| {
        frame.number("type", kind);
        frame.number("code", u8::from(done.is_err()));
    });
    adapter.send(frame.as_bytes())
}
