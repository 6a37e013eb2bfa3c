//! DTLS client with OpenSSL, and the network between it and the server.

use std::thread;

use super::*;
use crate::listener::dtls::ffi;

/// `drive` returns it when neither side has anything to send.
pub(super) const STUCK: &str = "nothing moves any more";

/// The sender of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

pub(super) struct Client {
    pub(super) stream: SslStream<DatagramBio>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl Client {
    pub(super) fn new(configure: impl FnOnce(&mut SslContextBuilder)) -> Self {
        let mut context = SslContext::builder(SslMethod::dtls_client()).unwrap();
        // So that it offers any suite.
        context.set_security_level(0);
        context.set_verify(SslVerifyMode::NONE);
        context.set_options(SslOptions::NO_QUERY_MTU);
        configure(&mut context);
        let mut ssl = Ssl::new(&context.build()).unwrap();
        ssl.set_mtu(1200).unwrap();
        ssl.set_connect_state();
        Self { stream: SslStream::new(ssl, DatagramBio::default()).unwrap() }
    }

    /// A client that negotiates records of at most 512 bytes.
    pub(super) fn small_records(suite: &str) -> Self {
        Self::new(|context| {
            context.set_cipher_list(suite).unwrap();
            ffi::ask_for_small_records(context);
        })
    }

    /// Continues its handshake; `true` once it is over.
    pub(super) fn advance(&mut self) -> Result<bool, String> {
        match self.stream.do_handshake() {
            Ok(()) => Ok(true),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(false),
            Err(error) => Err(format!("the client: {error}")),
        }
    }

    /// Its only outbound datagram.
    pub(super) fn begin(&mut self) -> Bytes {
        self.advance().unwrap();
        let [hello] = &self.sent()[..] else { panic!("not one datagram") };
        hello.clone()
    }

    pub(super) fn put(&mut self, datagram: Bytes) {
        self.stream.get_mut().put(datagram);
    }

    pub(super) fn sent(&mut self) -> Vec<Bytes> {
        self.stream.get_mut().outbound().drain(..).collect()
    }

    pub(super) fn seal(&mut self, data: &[u8]) -> Bytes {
        self.stream.ssl_write(data).unwrap();
        self.sent().remove(0)
    }

    pub(super) fn open(&mut self, datagram: Bytes) -> Result<Vec<u8>, ErrorCode> {
        self.put(datagram);
        let mut data = vec![0; 1 << 14];
        let count = self.stream.ssl_read(&mut data).map_err(|error| error.code())?;
        data.truncate(count);
        Ok(data)
    }

    /// Its retransmitted last flight, after its timeout.
    pub(super) fn retransmit(&mut self) -> Vec<Bytes> {
        wait(ffi::timeout(self.stream.ssl()).unwrap());
        assert!(ffi::handle_timeout(&mut self.stream));
        self.sent()
    }

    /// Starts a renegotiation.
    pub(super) fn renegotiate(&mut self) {
        ffi::renegotiate(&self.stream);
        self.advance().unwrap();
    }
}

/// Advances OpenSSL's clock by waiting; it has no other.
pub(super) fn wait(timeout: Duration) {
    let until = Instant::now() + timeout;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// A session with this client.
pub(super) fn establish(context: &Context, client: &mut Client) -> Result<Session, String> {
    let mut handshake = None;
    drive(context, client, &mut handshake, |_, _| true)?;
    Ok(handshake.unwrap().into_session())
}

/// Passes datagrams on until both sides are done, or nothing moves; those that do not `pass` are lost.
pub(super) fn drive(
    context: &Context,
    client: &mut Client,
    handshake: &mut Option<Handshake>,
    mut pass: impl FnMut(Side, &Bytes) -> bool,
) -> Result<(), String> {
    let mut verifier = CookieVerifier::new(&SECRET, Instant::now());
    let mut server_done = false;
    loop {
        let client_done = client.advance()?;
        let mut moved = false;
        for datagram in client.sent() {
            moved = true;
            if !pass(Side::Client, &datagram) {
                continue;
            }
            match handshake {
                Some(handshake) => assert_eq!(handshake.handle_datagram(datagram), Taken::Kept),
                None => match verifier.handle(Instant::now(), peer(1), local(), &datagram) {
                    CookieCheck::Answer(answer) => client.put(Bytes::copy_from_slice(&answer)),
                    CookieCheck::Enter(_) => {
                        *handshake = Some(Handshake::new(context, datagram).map_err(|error| error.to_string())?)
                    }
                    CookieCheck::NotClientHello => panic!("not a hello"),
                },
            }
            let Some(handshake) = handshake else { continue };
            server_done = handshake.advance().map_err(|error| error.to_string())? == Progress::Done;
        }
        let answers = handshake.iter_mut().flat_map(|handshake| std::iter::from_fn(|| handshake.poll_transmit()));
        for datagram in answers.collect::<Vec<_>>() {
            moved = true;
            if pass(Side::Server, &datagram) {
                client.put(datagram);
                client.advance()?;
            }
        }
        if client_done && server_done {
            return Ok(());
        }
        if !moved {
            return Err(STUCK.to_owned());
        }
    }
}

static SECRET: LazyLock<Secret> = LazyLock::new(|| Secret::new().unwrap());

/// All events of a datagram.
pub(super) fn events(session: &mut Session, datagram: Bytes) -> Vec<Event> {
    session.handle_datagram(datagram);
    std::iter::from_fn(|| session.poll_event()).collect()
}

/// All outbound datagrams of a session.
pub(super) fn sent(session: &mut Session) -> Vec<Bytes> {
    std::iter::from_fn(|| {
        let datagram = session.transmit().cloned();
        session.handle_transmitted();
        datagram
    })
    .collect()
}

/// Whether one of the records of a datagram is of this type.
pub(super) fn has_content(datagram: &Bytes, content: u8) -> bool {
    super::super::record_layer::records(datagram).any(|record| record.content == content)
}
