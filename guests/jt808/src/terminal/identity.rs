//! Who the terminal is: registration, authentication, and whose frames are let in.

use polygate_guest::{Adapter, ClientInfo, ErrorCode, Level, Qos};

use super::{Phase, Registration, Terminal};
use crate::downlink::Verdict;
use crate::header::{Header, Version};
use crate::malformed::Malformed;
use crate::reader::Reader;
use crate::{gbk, message, registration};

/// Results of a registration, in 0x8100.
const REGISTERED: u8 = 0;
const NO_SUCH_TERMINAL: u8 = 4;

impl Terminal {
    /// Whether a frame may go on: it has to be of the terminal that was accepted, or asks for that.
    ///
    /// A terminal that begins with neither a registration nor an authentication is asked for without credentials.
    pub(super) fn admit(&mut self, adapter: &mut dyn Adapter, header: &Header) -> bool {
        match &mut self.phase {
            Phase::Known { phone, address } => {
                let claimed = header.address.phone();
                if claimed == *phone {
                    *address = header.address;
                    return true;
                }
                let text =
                    format!("message {:#06x} of terminal {claimed} refused: this is terminal {phone}", header.id);
                self.faults.report(adapter, "other terminals", &text);
                self.answer_generally(adapter, header, Verdict::Failed);
                false
            }
            Phase::Silent | Phase::Unknown { .. } => match header.id {
                0x0100 | 0x0102 => true,
                _ => {
                    let accepted = if self.settings.implicit_authentication {
                        self.ask(adapter, header, None)
                    } else {
                        Err(ErrorCode::PermissionDenied)
                    };
                    match accepted {
                        Ok(()) => self.enter(adapter, header),
                        Err(refusal) => self.turn_away(adapter, header, refusal),
                    }
                    accepted.is_ok()
                }
            },
            Phase::Closing => false,
        }
    }

    /// 0x0100: hands out a code, and keeps what the terminal says of itself until it may be published.
    pub(super) fn on_registration(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8]) {
        let phone = header.address.phone();
        let [high, low] = header.serial.to_be_bytes();
        if !self.settings.registration {
            adapter.log(
                Level::Info,
                &format!("registration of terminal {phone} refused: the setting registration is \"deny\""),
            );
            self.send(adapter, &header.address, 0x8100, &[high, low, NO_SUCH_TERMINAL]);
            return;
        }
        let json =
            registration::json(&phone, header.serial, header.address.version, body).unwrap_or_else(|malformed| {
                self.faults.report(
                    adapter,
                    "undecoded 0x0100",
                    &format!("registration of terminal {phone} passed on as it is: {malformed}"),
                );
                message::json(&phone, header, body, None, Some(malformed), self.settings.timezone_min)
            });
        let code = self.settings.auth_code.clone().unwrap_or_else(|| draw_code(adapter).into_bytes());
        let answer = [&[high, low, REGISTERED], &code[..]].concat();
        self.send(adapter, &header.address, 0x8100, &answer);
        match &mut self.phase {
            Phase::Silent | Phase::Unknown { .. } => {
                self.phase = Phase::Unknown { registration: Some(Registration { phone, json }) };
            }
            Phase::Known { .. } => {
                self.publish(adapter, "registration", &json);
            }
            Phase::Closing => {}
        }
    }

    /// 0x0102: the gateway's authentication decides.
    pub(super) fn on_authentication(&mut self, adapter: &mut dyn Adapter, header: &Header, body: &[u8]) {
        if matches!(self.phase, Phase::Known { .. }) {
            adapter.log(Level::Debug, "authenticated again; it already is");
            return self.answer_generally(adapter, header, Verdict::Done);
        }
        let code = match code(header.address.version, body) {
            Ok(code) => code,
            Err(malformed) => {
                let phone = header.address.phone();
                let text = format!("authentication of terminal {phone} refused: {malformed}");
                self.faults.report(adapter, "authentications", &text);
                self.answer_generally(adapter, header, Verdict::Malformed);
                return self.close(adapter);
            }
        };
        match self.ask(adapter, header, Some(&code)) {
            Ok(()) => {
                // The answer comes first: until it has it, a terminal may take nothing else.
                self.answer_generally(adapter, header, Verdict::Done);
                self.enter(adapter, header);
                if let Some(json) = message::authentication_json(&header.address.phone(), header, body) {
                    self.publish(adapter, "message", &json);
                }
            }
            Err(refusal) => self.turn_away(adapter, header, refusal),
        }
    }

    /// Asks the gateway: with a code the phone number is user name too, without there is neither.
    fn ask(&self, adapter: &mut dyn Adapter, header: &Header, code: Option<&str>) -> Result<(), ErrorCode> {
        let phone = header.address.phone();
        let client = ClientInfo {
            proto_name: "JT/T 808",
            proto_ver: header.address.version.year(),
            client_id: &phone,
            username: code.map(|_| phone.as_str()),
        };
        adapter.authenticate(client, code)
    }

    /// The gateway has accepted the terminal.
    fn enter(&mut self, adapter: &mut dyn Adapter, header: &Header) {
        let phone = header.address.phone();
        adapter.log(
            Level::Info,
            &format!("terminal {phone} of JT/T 808-{} is authenticated", header.address.version.year()),
        );
        let filter = format!("jt808/{phone}/command");
        if let Err(refusal) = adapter.subscribe(&filter, Qos::AtLeastOnce) {
            adapter.log(Level::Warn, &format!("cannot subscribe to {filter}: {refusal}"));
        }
        let before = std::mem::replace(&mut self.phase, Phase::Known { phone, address: header.address });
        if let Phase::Unknown { registration: Some(Registration { phone, json }) } = before {
            if phone == header.address.phone() {
                self.publish(adapter, "registration", &json);
            } else {
                let text = format!("registration of terminal {phone} dropped: another one authenticated");
                self.faults.report(adapter, "other terminals", &text);
            }
        }
    }

    /// The gateway has not: the terminal hears it, and the connection ends.
    fn turn_away(&mut self, adapter: &mut dyn Adapter, header: &Header, refusal: ErrorCode) {
        let phone = header.address.phone();
        let text = format!("terminal {phone} turned away at message {:#06x}: {refusal}", header.id);
        self.faults.report(adapter, "refused terminals", &text);
        self.answer_generally(adapter, header, Verdict::Failed);
        self.close(adapter);
    }
}

/// A code for a terminal that registers: 64 random bits in hexadecimal.
fn draw_code(adapter: &mut dyn Adapter) -> String {
    adapter.random(8).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The code in the body of 0x0102.
///
/// Until 2013 it is the body; since 2019 its length stands before it and other things follow. Terminals that moved to the
/// new header alone are known by a length that does not fit. It is in GBK, of which ASCII is a part; a terminal that was given
/// a code in UTF-8 elsewhere may show that.
fn code(version: Version, body: &[u8]) -> Result<String, Malformed> {
    let code = match version {
        Version::V2013 => body,
        Version::V2019(_) => Reader(body).counted("code").unwrap_or(body),
    };
    // Some pad it to a fixed length.
    let end = code.iter().rposition(|byte| *byte != 0).ok_or(Malformed::Code)?;
    let code = code.get(..=end).unwrap_or_default();
    gbk::decode(code).or_else(|| String::from_utf8(code.to_vec()).ok()).ok_or(Malformed::Code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms of the code.
    #[test]
    fn codes() {
        let v2019 = Version::V2019(1);
        let secret = Ok("secret".to_owned());
        assert_eq!(code(Version::V2013, b"secret\0\0"), secret);
        assert_eq!(code(v2019, b"\x06secret867567041100769software"), secret);
        assert_eq!(code(v2019, b"secret"), secret);
        assert_eq!(code(Version::V2013, b"\xbe\xa9"), Ok("京".to_owned()));
        assert_eq!(code(Version::V2013, "ꂟé".as_bytes()), Ok("ꂟé".to_owned()));
        assert_eq!(code(Version::V2013, b"\xbe"), Err(Malformed::Code));
        assert_eq!(code(Version::V2013, b""), Err(Malformed::Code));
        assert_eq!(code(v2019, b"\0"), Err(Malformed::Code));
    }
}
