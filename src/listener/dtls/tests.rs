//! Handshakes and sessions with OpenSSL's client, without a socket: datagrams are passed on, lost or changed.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVerifyMode};
use openssl::x509::X509;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::datagram_bio::DatagramBio;
use super::*;
use crate::listener::HandshakeError;
use crate::listener::credentials::{Authorities, Clients, Credentials, Identity};
use crate::listener::psk::Psks;

mod client;

use client::{Client, STUCK, Side, drive, establish, events, has_content, sent, wait};

/// Every suite of the default list is negotiated by a client with only that one, and carries data in both directions.
#[test]
fn every_suite_carries_data() {
    let context = context(|_| {});
    for suite in CIPHERS.split(':') {
        let mut client = Client::new(|client| {
            client.set_cipher_list(suite).unwrap();
            pre_shared(client, "device", b"a key of sixteen");
        });
        let mut session = establish(&context, &mut client).unwrap_or_else(|error| panic!("{suite}: {error}"));
        assert_eq!(client.stream.ssl().current_cipher().unwrap().name(), suite);
        for data in [&b"hello"[..], b"x", &[7; 16_384]] {
            assert_eq!(events(&mut session, client.seal(data)), [Event::Data(Bytes::copy_from_slice(data))], "{suite}");
            session.send(data).unwrap();
            assert_eq!(client.open(sent(&mut session).remove(0)).unwrap(), data, "{suite}");
        }
        assert_eq!(session.take_dropped(), 0, "{suite}");
    }
}

/// Suites with a pre-shared key are refused without keys, and the others without a certificate.
#[test]
fn credentials_decide_the_offered_suites() {
    let keys_alone = context(|credentials| credentials.identities.clear());
    let certificates_alone = context(|credentials| credentials.psks = None);
    let with_key = |client: &mut SslContextBuilder| {
        client.set_cipher_list("PSK-AES128-CCM8").unwrap();
        pre_shared(client, "device", b"a key of sixteen");
    };
    establish(&keys_alone, &mut Client::new(with_key)).unwrap();
    establish(&certificates_alone, &mut Client::default()).unwrap();
    assert_eq!(
        establish(&certificates_alone, &mut Client::new(with_key)).unwrap_err(),
        HandshakeError::NoSharedCipher.to_string()
    );
    assert_eq!(establish(&keys_alone, &mut Client::default()).unwrap_err(), HandshakeError::NoSharedCipher.to_string());
}

/// Neither an unknown identity nor a wrong key establishes a session.
#[test]
fn wrong_keys_are_refused() {
    let context = context(|_| {});
    for suite in ["PSK-AES128-CCM8", "PSK-AES128-CBC-SHA256", "ECDHE-PSK-CHACHA20-POLY1305"] {
        for (identity, key) in [("device", b"another sixteen!"), ("stranger", b"a key of sixteen")] {
            let mut client = Client::new(|client| {
                client.set_cipher_list(suite).unwrap();
                pre_shared(client, identity, key);
            });
            establish(&context, &mut client).expect_err(suite);
        }
    }
}

/// A client's weak certificate stays refused although suites with short tags are allowed.
#[test]
fn short_tags_do_not_lower_the_rest() {
    let key = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
    let authority = X509::from_der(AUTHORITY.certificate.der()).unwrap();
    let mut certificate = X509::builder().unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_issuer_name(authority.subject_name()).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    let authority_key = PKey::private_key_from_pkcs8(&AUTHORITY.certificate.key().serialize_der()).unwrap();
    certificate.sign(&authority_key, MessageDigest::sha256()).unwrap();
    let weak = Signed { chain: vec![certificate.build().to_der().unwrap()], key: key.private_key_to_pkcs8().unwrap() };

    let context = context(|credentials| credentials.clients = Clients::Required(trust(Vec::new())));
    let mut client = Client::new(|client| show(client, &weak));
    let error = establish(&context, &mut client).unwrap_err();
    assert!(error.contains("key too weak"), "{error}");
}

/// The certificate is chosen by the client's signature schemes, with its own chain, and each of three curves works.
#[test]
fn both_kinds_of_certificate() {
    let intermediate = Authority::signed_by(&AUTHORITY, "intermediate");
    let mut ec = intermediate.sign("ec", &ec_key());
    ec.chain.push(intermediate.certificate.der().to_vec());
    let rsa = AUTHORITY.sign("rsa", &rsa_key());
    let context = context(|credentials| credentials.identities = vec![rsa.identity(), ec.identity()]);
    for (suite, subjects) in
        [("ECDHE-ECDSA-AES128-GCM-SHA256", &["ec", "intermediate"][..]), ("ECDHE-RSA-AES128-GCM-SHA256", &["rsa"])]
    {
        // The curve of the certificate must be among them too.
        for groups in ["P-256", "P-384:P-256", "X25519:P-256"] {
            let mut client = Client::new(|client| {
                client.set_cipher_list(suite).unwrap();
                client.set_groups_list(groups).unwrap();
            });
            establish(&context, &mut client).unwrap();
            let chain = client.stream.ssl().peer_cert_chain().unwrap();
            let names: Vec<_> = chain.iter().map(common_name).collect();
            assert_eq!(names, subjects, "{suite} {groups}");
        }
    }
}

/// Clients without a certificate, with a valid one, with one of another authority, and with a revoked one.
#[test]
fn certificates_of_clients() {
    let good = AUTHORITY.sign("good", &ec_key());
    let good_rsa = AUTHORITY.sign("good rsa", &rsa_key());
    let revoked = AUTHORITY.sign_numbered("revoked", &ec_key(), 7);
    let strange = Authority::new("authority").sign("strange", &ec_key());
    let intermediate = Authority::signed_by(&AUTHORITY, "intermediate");
    let mut chained = intermediate.sign("chained", &ec_key());
    chained.chain.push(intermediate.certificate.der().to_vec());
    let lists = || vec![AUTHORITY.revoke(7), intermediate.revoke(1)];

    let failed = HandshakeError::UnknownAuthority.to_string();
    let is_revoked = HandshakeError::Revoked.to_string();
    let missing = HandshakeError::NoCertificate.to_string();
    let (failed, is_revoked, missing) = (failed.as_str(), is_revoked.as_str(), missing.as_str());
    for (clients, shown, expected) in [
        (Clients::Unasked, Some(&good), Ok(None)),
        (Clients::Optional(trust(Vec::new())), None, Ok(None)),
        (Clients::Optional(trust(Vec::new())), Some(&good), Ok(Some("good"))),
        (Clients::Optional(trust(Vec::new())), Some(&strange), Err(failed)),
        (Clients::Required(trust(Vec::new())), None, Err(missing)),
        (Clients::Required(trust(Vec::new())), Some(&good), Ok(Some("good"))),
        (Clients::Required(trust(Vec::new())), Some(&good_rsa), Ok(Some("good rsa"))),
        (Clients::Required(trust(Vec::new())), Some(&chained), Ok(Some("chained"))),
        (Clients::Required(trust(Vec::new())), Some(&strange), Err(failed)),
        (Clients::Required(trust(Vec::new())), Some(&revoked), Ok(Some("revoked"))),
        (Clients::Required(trust(lists())), Some(&good), Ok(Some("good"))),
        (Clients::Required(trust(lists())), Some(&chained), Ok(Some("chained"))),
        (Clients::Required(trust(lists())), Some(&revoked), Err(is_revoked)),
    ] {
        let context = context(|credentials| credentials.clients = clients);
        let mut client = Client::new(|client| {
            if let Some(identity) = shown {
                show(client, identity);
            }
        });
        let mut handshake = None;
        let result = drive(&context, &mut client, &mut handshake, |_, _| true);
        let came = result.map(|()| {
            let certificate = handshake.unwrap().certificate();
            certificate.map(|der| common_name(&X509::from_der(&der).unwrap()))
        });
        assert_eq!(came, expected.map(|name| name.map(str::to_owned)).map_err(str::to_owned));
    }
}

/// A pre-shared key replaces the mandatory client certificate.
#[test]
fn a_key_stands_for_a_certificate() {
    let context = context(|credentials| credentials.clients = Clients::Required(trust(Vec::new())));
    let mut client = Client::new(|client| {
        client.set_cipher_list("PSK-AES128-CCM8").unwrap();
        pre_shared(client, "device", b"a key of sixteen");
    });
    establish(&context, &mut client).unwrap();
}

/// No datagram of a handshake is longer than the MTU, however long the chain, and a lost one is harmless.
#[test]
fn handshakes_keep_to_the_mtu() {
    let mut identity = AUTHORITY.sign("server", &ec_key());
    for number in 0..5 {
        identity.chain.push(Authority::new(&format!("authority {number}")).certificate.der().to_vec());
    }
    for mtu in [256, 576, 1400] {
        let credentials = Credentials { identities: vec![identity.identity()], ..credentials() };
        let context = Context::new(&credentials, &Options { mtu, ..options() }).unwrap();
        let (mut handshake, mut datagrams) = (None, 0);
        drive(&context, &mut Client::default(), &mut handshake, |_, datagram| {
            assert!(datagram.len() <= usize::from(mtu), "{} bytes", datagram.len());
            datagrams += 1;
            true
        })
        .unwrap();
        assert!(datagrams > 2, "{datagrams}");
    }
}

/// Lost datagrams are retransmitted after OpenSSL's timeout, and the handshake completes.
#[test]
fn lost_flights_are_sent_again() {
    let context = context(|_| {});
    let mut client = Client::default();
    let mut handshake = None;
    let mut lost = 0;
    let mut lossy = |side, _: &Bytes| {
        let passes = side == Side::Client || lost == 1;
        lost += usize::from(!passes);
        passes
    };
    while let Err(error) = drive(&context, &mut client, &mut handshake, &mut lossy) {
        assert_eq!(error, STUCK);
        let handshake = handshake.as_mut().unwrap();
        wait(handshake.timeout().unwrap());
        handshake.handle_timeout().unwrap();
    }
    assert_eq!(lost, 1);
}

/// A client that has lost our last flight retransmits its own, and is answered, with either record layer.
#[test]
fn the_last_flight_is_sent_again() {
    let context = context(|_| {});
    for suite in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"] {
        let mut client = Client::new(|client| client.set_cipher_list(suite).unwrap());
        let mut handshake = None;
        // The last flight is the only one with a change of cipher: content type 20.
        let result = drive(&context, &mut client, &mut handshake, |side, datagram| {
            side == Side::Client || !has_content(datagram, 20)
        });
        assert_eq!(result, Err(STUCK.to_owned()), "{suite}");
        let mut session = handshake.unwrap().into_session();
        while session.transmit().is_some() {
            session.handle_transmitted();
        }

        assert!(!client.stream.ssl().is_init_finished());
        let again = client.retransmit();
        let mut answers = Vec::new();
        for datagram in again {
            assert_eq!(events(&mut session, datagram), []);
            answers.append(&mut sent(&mut session));
        }
        for answer in answers {
            client.put(answer);
            client.advance().unwrap();
        }
        assert!(client.stream.ssl().is_init_finished(), "{suite}");
        assert_eq!(events(&mut session, client.seal(b"at last")), [Event::Data(Bytes::from_static(b"at last"))]);
    }
}

/// The memory of an unfinished handshake is bounded.
#[test]
fn a_handshake_has_a_bound() {
    let context = context(|_| {});
    let mut client = Client::default();
    let mut handshake = None;
    let stuck = drive(&context, &mut client, &mut handshake, |side, datagram| {
        side == Side::Server || !has_content(datagram, 20)
    });
    assert_eq!(stuck, Err(STUCK.to_owned()));
    let mut handshake = handshake.unwrap();
    // Fragments of later messages: OpenSSL keeps them.
    let mut kept = 0;
    let part = Bytes::from(vec![22; 1024]);
    while handshake.handle_datagram(part.clone()) == Taken::Kept {
        kept += part.len();
        assert!(kept <= 128 << 10, "{kept} bytes were kept");
    }
    assert!(kept > 64 << 10, "{kept} bytes");
}

/// Data with the client's last flight, or before it, is neither lost nor duplicated.
#[test]
fn data_may_be_early() {
    let context = context(|_| {});
    let mut client = Client::default();
    let mut handshake = None;
    // The client finishes, and its last datagram is delayed.
    let mut last = Vec::new();
    let result = drive(&context, &mut client, &mut handshake, |side, datagram| {
        let is_last = side == Side::Client && has_content(datagram, 20);
        if is_last {
            last.push(datagram.clone());
        }
        !is_last
    });
    assert_eq!(result, Err(STUCK.to_owned()));
    let mut handshake = handshake.unwrap();
    for datagram in &last {
        assert_eq!(handshake.handle_datagram(datagram.clone()), Taken::Kept);
        let progress = handshake.advance().unwrap();
        if progress == Progress::Done {
            break;
        }
    }
    while let Some(datagram) = handshake.poll_transmit() {
        client.put(datagram);
        client.advance().unwrap();
    }
    // There is no session yet when these two arrive; the second one is delayed further.
    let early = client.seal(b"early");
    assert_eq!(handshake.handle_datagram(early.clone()), Taken::Kept);
    let mut session = handshake.into_session();
    assert_eq!(session.poll_event(), Some(Event::Data(Bytes::from_static(b"early"))));
    assert_eq!(session.poll_event(), None);
    assert_eq!(events(&mut session, early), [], "it has been read");
    assert!(sent(&mut session).is_empty(), "the flight that ended the handshake has had its answer");
    assert_eq!(session.take_dropped(), 1);
    assert_eq!(events(&mut session, client.seal(b"later")), [Event::Data(Bytes::from_static(b"later"))]);
}

/// Spoofed datagrams with the peer's address do not end the session, with either record layer.
#[test]
fn spoofed_datagrams_do_not_end_a_session() {
    let context = context(|_| {});
    /// SSL_OP_NO_ENCRYPT_THEN_MAC of ssl.h.
    const MAC_FIRST: SslOptions = SslOptions::from_bits_retain(1 << 19);
    for (suite, options) in CIPHERS.split(':').flat_map(|suite| [(suite, SslOptions::empty()), (suite, MAC_FIRST)]) {
        let mut client = Client::new(|client| {
            client.set_cipher_list(suite).unwrap();
            client.set_options(options);
            pre_shared(client, "device", b"a key of sixteen");
        });
        let mut session = establish(&context, &mut client).unwrap();
        for content in [20, 21, 22, 23, 24, 0] {
            for epoch in [0, 1, 2] {
                for len in (0..80).chain([96, 112, 1024, 16_384, 17_000]) {
                    let number = 100 + u8::try_from(len % 100).unwrap();
                    let mut forged = vec![content, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, number];
                    forged.extend(u16::try_from(len).unwrap().to_be_bytes());
                    // In the clear it would be an alert.
                    forged.extend([2, 40].into_iter().cycle().take(len));
                    let came = events(&mut session, forged.into());
                    assert_eq!(came, [], "{suite}: content {content}, epoch {epoch}, {len} bytes");
                    assert!(sent(&mut session).is_empty(), "{suite}: content {content}, epoch {epoch}, {len} bytes");
                }
            }
        }
        assert_eq!(events(&mut session, client.seal(b"still")), [Event::Data(Bytes::from_static(b"still"))], "{suite}");
    }
}

/// Several records in one datagram are as many events; replayed, changed and malformed ones are dropped and counted.
#[test]
fn replayed_and_forged_records_are_dropped() {
    let context = context(|_| {});
    for suite in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "PSK-AES128-CCM8"] {
        let mut client = Client::new(|client| {
            client.set_cipher_list(suite).unwrap();
            pre_shared(client, "device", b"a key of sixteen");
        });
        let mut session = establish(&context, &mut client).unwrap();
        let (one, two, three) = (client.seal(b"one"), client.seal(b"two"), client.seal(b"three"));
        let both = Bytes::from([&two[..], &one[..]].concat());
        let data = |text: &'static str| Event::Data(Bytes::from_static(text.as_bytes()));
        assert_eq!(events(&mut session, both.clone()), [data("two"), data("one")], "{suite}");
        assert_eq!(session.take_dropped(), 0);
        assert_eq!(events(&mut session, both), [], "{suite}");
        assert_eq!(session.take_dropped(), 2);
        for at in 0..three.len() {
            let mut changed = three.to_vec();
            changed[at] ^= 0x10;
            assert_eq!(events(&mut session, changed.into()), [], "{suite}: byte {at}");
            assert_eq!(events(&mut session, three.slice(..at)), [], "{suite}: {at} bytes");
        }
        assert!(session.take_dropped() >= 2 * three.len() as u64 - 1);
        assert_eq!(events(&mut session, three), [data("three")], "{suite}");
        assert!(sent(&mut session).is_empty(), "no alert is sent");
    }
}

/// Both sides can close, and get the other's `close_notify`.
#[test]
fn closing() {
    let context = context(|_| {});
    for suite in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"] {
        let connect = || {
            let mut client = Client::new(|client| client.set_cipher_list(suite).unwrap());
            let session = establish(&context, &mut client).unwrap();
            (client, session)
        };
        let (mut client, mut session) = connect();
        client.stream.shutdown().unwrap();
        let datagram = client.sent().remove(0);
        assert_eq!(events(&mut session, datagram), [Event::Closed], "{suite}");

        let (mut client, mut session) = connect();
        session.close();
        session.close();
        assert_eq!(session.send(b"too late"), Err(SendError::Ended), "{suite}");
        let [datagram] = &sent(&mut session)[..] else { panic!("{suite}: not one alert") };
        assert_eq!(client.open(datagram.clone()).unwrap_err(), ErrorCode::ZERO_RETURN, "{suite}");
    }
}

/// A datagram that is too large for a record is refused, and the session continues; a peer may negotiate smaller
/// records.
#[test]
fn datagrams_have_a_bound() {
    let context = context(|_| {});
    for suite in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"] {
        let mut client = Client::new(|client| client.set_cipher_list(suite).unwrap());
        let mut session = establish(&context, &mut client).unwrap();
        assert_eq!(session.send(&[0; 16_385]), Err(SendError::TooLong { bytes: 16_385, bytes_max: 16_384 }));
        session.send(&[1; 16_384]).unwrap();
        assert_eq!(client.open(sent(&mut session).remove(0)).unwrap(), [1; 16_384]);

        let mut small = Client::small_records(suite);
        let mut session = establish(&context, &mut small).unwrap();
        assert_eq!(session.send(&[0; 513]), Err(SendError::TooLong { bytes: 513, bytes_max: 512 }), "{suite}");
        session.send(&[1; 512]).unwrap();
        assert_eq!(small.open(sent(&mut session).remove(0)).unwrap(), [1; 512]);
    }
}

/// A renegotiation is refused with a warning, one for a datagram, and the session continues.
#[test]
fn renegotiation_is_refused() {
    let context = context(|_| {});
    let mut client = Client::default();
    let mut session = establish(&context, &mut client).unwrap();
    client.renegotiate();
    let mut hellos = client.sent();
    hellos.append(&mut client.retransmit());
    assert_eq!(hellos.len(), 2);
    assert_eq!(events(&mut session, hellos.concat().into()), []);
    assert_eq!(session.take_dropped(), 0);
    let [answer] = &sent(&mut session)[..] else { panic!("no answer") };
    assert!(has_content(answer, 21));
    session.send(b"still here").unwrap();
    assert_eq!(sent(&mut session).len(), 1);
}

/// A cookie is valid for its sender and for some minutes only.
#[test]
fn cookies() {
    let secret = Secret::new().unwrap();
    let begin = Instant::now();
    let mut verifier = CookieVerifier::new(&secret, begin);
    let mut client = Client::default();
    let hello = client.begin();
    let CookieCheck::Answer(answer) = verifier.handle(begin, peer(1), local(), &hello) else { panic!("no answer") };
    assert!(answer.len() < hello.len(), "an answer is never longer than what asked for it");
    client.put(Bytes::copy_from_slice(&answer));
    let with_cookie = client.begin();
    let CookieCheck::Enter(attempt) = verifier.handle(begin, peer(1), local(), &with_cookie) else {
        panic!("not let in")
    };
    assert_eq!(HandshakeId::of_datagram(&hello), Some(attempt), "the attempt is the same");
    assert_ne!(HandshakeId::of_datagram(&Client::default().begin()), Some(attempt));

    let mut comes = |after: u64, peer: SocketAddr, local: SocketAddr, datagram: &[u8]| {
        matches!(verifier.handle(begin + Duration::from_secs(after), peer, local, datagram), CookieCheck::Enter(_))
    };
    assert!(!comes(0, peer(2), local(), &with_cookie), "another port");
    assert!(!comes(0, "[::ffff:127.0.0.2]:1".parse().unwrap(), local(), &with_cookie), "another address");
    assert!(!comes(0, peer(1), peer(2000), &with_cookie), "another address of ours");
    let mut other_cookie = with_cookie.to_vec();
    other_cookie[65] ^= 1;
    assert!(!comes(0, peer(1), local(), &other_cookie), "another cookie");
    assert!(comes(239, peer(1), local(), &with_cookie), "the key before the current one");
    assert!(!comes(240, peer(1), local(), &with_cookie), "a key that is gone");

    let mut another = CookieVerifier::new(&secret, begin);
    assert!(matches!(another.handle(begin, peer(1), local(), &with_cookie), CookieCheck::Enter(_)), "another verifier");
    let mut restarted = CookieVerifier::new(&Secret::new().unwrap(), begin);
    assert!(
        matches!(restarted.handle(begin, peer(1), local(), &with_cookie), CookieCheck::Answer(_)),
        "another process"
    );
}

proptest! {
    /// Random bytes make neither the cookie verifier, a handshake nor a session panic, and are never admitted.
    #[test]
    fn hostile_datagrams(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        changes in proptest::collection::vec((0..200usize, any::<u8>()), 0..6),
        length in 0..300usize,
    ) {
        let mut verifier = CookieVerifier::new(&Secret::new().unwrap(), Instant::now());
        prop_assert_eq!(verifier.handle(Instant::now(), peer(1), local(), &bytes), CookieCheck::NotClientHello);

        let mut changed = HELLO.to_vec();
        for (at, byte) in changes {
            if let Some(place) = changed.get_mut(at) {
                *place = byte;
            }
        }
        changed.truncate(length);
        prop_assert!(!matches!(verifier.handle(Instant::now(), peer(1), local(), &changed), CookieCheck::Enter(_)));
        let context = &*CONTEXT;
        if let Ok(mut handshake) = Handshake::new(context, changed.clone().into()) {
            while matches!(handshake.advance(), Ok(Progress::Waiting)) && !changed.is_empty() {
                assert_eq!(handshake.handle_datagram(std::mem::take(&mut changed).into()), Taken::Kept);
            }
        }
        let mut client = Client::default();
        let mut session = establish(context, &mut client).unwrap();
        prop_assert_eq!(events(&mut session, bytes.into()), []);
        prop_assert_eq!(events(&mut session, client.seal(b"x")), [Event::Data(Bytes::from_static(b"x"))]);
    }
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("authority"));
static CONTEXT: LazyLock<Context> = LazyLock::new(|| context(|_| {}));
static HELLO: LazyLock<Bytes> = LazyLock::new(|| Client::default().begin());

fn peer(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5684))
}

/// A context with one change.
fn context(change: impl FnOnce(&mut Credentials)) -> Context {
    let mut credentials = credentials();
    change(&mut credentials);
    Context::new(&credentials, &options()).unwrap()
}

fn options() -> Options {
    Options { ciphers: CIPHERS.to_owned(), mtu: 1200 }
}

/// Certificates of both key types, and a pre-shared key.
fn credentials() -> Credentials {
    static IDENTITIES: LazyLock<[Identity; 2]> = LazyLock::new(|| {
        [AUTHORITY.sign("server", &ec_key()).identity(), AUTHORITY.sign("server", &rsa_key()).identity()]
    });
    // The key is "a key of sixteen".
    let psks = Psks::parse("device:61206b6579206f66207369787465656e").unwrap();
    Credentials { identities: IDENTITIES.to_vec(), psks: Some(Arc::new(psks)), ..Credentials::default() }
}

/// Our own authority, with these revocation lists.
fn trust(lists: Vec<Vec<u8>>) -> Authorities {
    let roots = vec![AUTHORITY.certificate.der().clone()];
    Authorities { roots, revoked: lists.into_iter().map(CertificateRevocationListDer::from).collect() }
}

/// A certificate with its chain, and its key.
struct Signed {
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Signed {
    fn identity(&self) -> Identity {
        let chain = self.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Identity::new(chain, PrivateKeyDer::try_from(self.key.clone()).unwrap()).unwrap()
    }
}

fn ec_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn rsa_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

struct Authority {
    certificate: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        Self { certificate: CertifiedIssuer::self_signed(Self::params(name), KeyPair::generate().unwrap()).unwrap() }
    }

    fn signed_by(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: CertifiedIssuer::signed_by(Self::params(name), key, &*self.certificate).unwrap() }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn sign(&self, name: &str, key: &PKey<Private>) -> Signed {
        self.sign_numbered(name, key, 1000)
    }

    fn sign_numbered(&self, name: &str, key: &PKey<Private>, number: u64) -> Signed {
        let key = key.private_key_to_pkcs8().unwrap();
        let pair = KeyPair::try_from(key.as_slice()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.serial_number = Some(SerialNumber::from(number));
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&pair, &*self.certificate).unwrap();
        Signed { chain: vec![certificate.der().to_vec()], key }
    }

    /// A list with this number.
    fn revoke(&self, number: u64) -> Vec<u8> {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(number),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            // Outdated, and applied all the same.
            next_update: date_time_ymd(2024, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&*self.certificate).unwrap().der().to_vec()
    }
}

fn show(client: &mut SslContextBuilder, identity: &Signed) {
    client.set_certificate(&X509::from_der(&identity.chain[0]).unwrap()).unwrap();
    client.set_private_key(&PKey::private_key_from_der(&identity.key).unwrap()).unwrap();
    for issuer in &identity.chain[1..] {
        client.add_extra_chain_cert(X509::from_der(issuer).unwrap()).unwrap();
    }
}

fn pre_shared(client: &mut SslContextBuilder, identity: &'static str, key: &'static [u8]) {
    client.set_psk_client_callback(move |_, _, identity_place, key_place| {
        identity_place[..identity.len()].copy_from_slice(identity.as_bytes());
        identity_place[identity.len()] = 0;
        key_place[..key.len()].copy_from_slice(key);
        Ok(key.len())
    });
}

fn common_name(certificate: &openssl::x509::X509Ref) -> String {
    let name = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).next().unwrap();
    name.data().to_string().unwrap().to_string()
}
