//! The components of guests/dist that export `migrate` carry a connection over: what one instance has written, another
//! goes on with. Here the host is as small as can be, so that it is the components that are seen.

use std::collections::BTreeMap;
use std::path::Path;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, Store};

use bindings::MigratingConnectionHandler;
use bindings::exports::polygate::handler::migrate::State;
use bindings::polygate::handler::adapter::{self, ClientInfo, Conn, ErrorCode, Level, Qos, Timer};
use bindings::polygate::handler::types::{self, Address, ConnInfo, SocketKind};

mod bindings {
    wasmtime::component::bindgen!({ path: "wit", world: "migrating-connection-handler" });
}

/// The connection's id is the host's, and the same in both versions.
const CONN: Conn = 7;

/// The count goes on in another version, which answers under its own name.
#[test]
fn a_count_goes_on() {
    let mut blue = Instance::of("counter", &[("version", "blue")]);
    blue.begins();
    assert_eq!(blue.gets(b"x"), b"blue:1\n");
    let state = blue.snapshot();
    let mut green = Instance::of("counter", &[("version", "green")]);
    green.restore(state).unwrap();
    assert_eq!(green.gets(b"x"), b"green:2\n");
    assert_eq!(blue.gets(b"x"), b"blue:2\n");
}

/// A version that refuses says why, and the one before still has the connection.
#[test]
fn a_refusal() {
    let mut before = Instance::of("counter", &[]);
    before.begins();
    let state = before.snapshot();
    let mut refusing = Instance::of("counter", &[("migrate", "refuse")]);
    assert_eq!(refusing.restore(state).unwrap_err(), "told to refuse by the setting migrate");
    assert_eq!(before.gets(b"x"), b"1:1\n");
}

/// Half an object is in the one version, the other half comes to the other.
#[test]
fn in_the_middle_of_an_object() {
    let mut before = Instance::of("echo", &[]);
    before.begins();
    assert_eq!(before.gets(br#"{"type":7,"topic":"{"#), b"");
    let mut after = Instance::of("echo", &[]);
    after.restore(before.snapshot()).unwrap();
    assert_eq!(after.gets(br#"\"}"}"#), br#"{"type":8,"code":0}"#);
}

/// A terminal in the middle of a frame stays known, and its answers go on counting. The settings are those of the new
/// version.
#[test]
fn in_the_middle_of_a_frame() {
    let heartbeat = |serial: u8| frame(&[0, 2, 0, 0, 1, 0x38, 0, 0x13, 0x80, 0, 0, serial]);
    let answer = |own: u8, serial: u8| frame(&[0x80, 1, 0, 5, 1, 0x38, 0, 0x13, 0x80, 0, 0, own, 0, serial, 0, 2, 0]);
    let mut before = Instance::of("jt808", &[]);
    before.begins();
    assert_eq!(before.gets(&heartbeat(1)), answer(0, 1));
    let second = heartbeat(2);
    assert_eq!(before.gets(&second[..5]), b"");
    // The new version would let nobody in who does not authenticate; this terminal is in.
    let mut after = Instance::of("jt808", &[("implicit_authentication", "deny")]);
    after.restore(before.snapshot()).unwrap();
    assert_eq!(after.gets(&second[5..]), answer(1, 2));
}

/// A tracker of H02 and a vehicle of GB/T 32960 outlive a swap in the middle of a frame, and are who they were.
#[test]
fn in_the_middle_of_a_sentence() {
    let sentence = b"*HQ,353111080001055,HTBT,85#";
    let login = b"##\x07\xfeLTESTVIN000000001\x01\x00\x00\xc2";
    let answer = b"##\x07\x01LTESTVIN000000001\x01\x00\x00\x3d";
    for (name, frame, answer) in
        [("h02", &sentence[..], &b"*HQ,353111080001055,HTBT#"[..]), ("gb32960", &login[..], &answer[..])]
    {
        let mut before = Instance::of(name, &[]);
        before.begins();
        assert_eq!(before.gets(frame), answer, "{name}");
        assert_eq!(before.gets(&frame[..9]), b"", "{name}");
        let mut after = Instance::of(name, &[]);
        after.restore(before.snapshot()).unwrap();
        assert_eq!(after.gets(&frame[9..]), answer, "{name}");
    }
}

/// A state that is none is refused, and nothing traps.
#[test]
fn a_broken_state() {
    for (name, format) in [("counter", 1), ("echo", 1), ("gb32960", 1), ("h02", 1), ("jt808", 2)] {
        let refused = |state: State| Instance::of(name, &[]).restore(Some(state)).unwrap_err();
        let expected = format!("expected a state of format {format}, found format 9");
        assert_eq!(refused(State { format: 9, bytes: vec![] }), expected);
        for format in 1..=format {
            assert!(!refused(State { format, bytes: vec![0xff; 40] }).is_empty());
        }
    }
}

/// An instance of a guest, for one connection.
struct Instance {
    store: Store<Runtime>,
    exports: MigratingConnectionHandler,
}

impl Instance {
    fn of(name: &str, settings: &[(&str, &str)]) -> Self {
        let engine = Engine::new(Config::new().concurrency_support(false)).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("guests/dist/{name}.wasm"));
        let component = Component::from_file(&engine, file).unwrap();
        let mut linker = Linker::new(&engine);
        MigratingConnectionHandler::add_to_linker::<_, HasSelf<Runtime>>(&mut linker, |host| host).unwrap();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut store = Store::new(&engine, Runtime { sent: Vec::new(), settings });
        let exports = MigratingConnectionHandler::instantiate(&mut store, &component, &linker).unwrap();
        Self { store, exports }
    }

    fn begins(&mut self) {
        self.exports.polygate_handler_handler().call_on_socket_created(&mut self.store, CONN, &info()).unwrap();
    }

    /// What comes back for these bytes.
    fn gets(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.exports.polygate_handler_handler().call_on_received_bytes(&mut self.store, CONN, bytes).unwrap();
        std::mem::take(&mut self.store.data_mut().sent)
    }

    fn snapshot(&mut self) -> Option<State> {
        self.exports.polygate_handler_migrate().call_snapshot(&mut self.store, CONN).unwrap()
    }

    fn restore(&mut self, state: Option<State>) -> Result<(), String> {
        let migrate = self.exports.polygate_handler_migrate();
        migrate.call_restore(&mut self.store, CONN, &info(), state.as_ref()).unwrap()
    }
}

fn info() -> ConnInfo {
    let address = Address { host: "127.0.0.1".to_owned(), port: 1 };
    ConnInfo { kind: SocketKind::Tcp, peer: address.clone(), local: address, peer_cert: None }
}

/// A frame of JT/T 808 in which nothing has to be escaped.
fn frame(content: &[u8]) -> Vec<u8> {
    let checksum = content.iter().fold(0, |sum, byte| sum ^ byte);
    [&[0x7e], content, &[checksum, 0x7e]].concat()
}

/// A gateway that does all that it is asked, and keeps what is for the device.
struct Runtime {
    sent: Vec<u8>,
    settings: BTreeMap<String, String>,
}

impl types::Host for Runtime {}

impl adapter::Host for Runtime {
    fn send(&mut self, conn: Conn, bytes: Vec<u8>) -> Result<(), ErrorCode> {
        assert_eq!(conn, CONN);
        self.sent.extend(bytes);
        Ok(())
    }

    fn close(&mut self, _: Conn) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn authenticate(&mut self, _: Conn, _: ClientInfo, _: Option<String>) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn start_timer(&mut self, _: Conn, _: Timer, _: u32) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn stop_timer(&mut self, _: Conn, _: Timer) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn publish(&mut self, _: Conn, _: String, _: Qos, _: Vec<u8>) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn subscribe(&mut self, _: Conn, _: String, _: Qos) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn unsubscribe(&mut self, _: Conn, _: String) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn raw_publish(&mut self, _: String, _: Qos, _: Vec<u8>) -> Result<(), ErrorCode> {
        Ok(())
    }

    fn setting(&mut self, name: String) -> Option<String> {
        self.settings.get(&name).cloned()
    }

    fn now_ms(&mut self) -> u64 {
        0
    }

    fn random(&mut self, len: u32) -> Vec<u8> {
        vec![0; len as usize]
    }

    fn log(&mut self, _: Level, _: String) {}
}
