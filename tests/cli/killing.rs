//! SIGKILL under load: what the broker has acknowledged is there after the next start.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::program::{Setup, within};

/// How often the program is killed.
const KILLS: u64 = 20;

/// Messages in all, of QoS 1 and 2 in turn.
const MESSAGES: usize = 4_000;

/// With `every-message`, no message whose acknowledgement has come is missing after 20 kills at any moment, and none of
/// QoS 2 is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_kill() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let setup = || {
        Setup::new(&format!(
            "[broker]\nbind = \"127.0.0.1:{port}\"\ndurability = \"every-message\"\nclient_queue_max = 100_000\n\
             client_queue_bytes_max = \"64MiB\"\n[auth]\nallow_anonymous = true\n"
        ))
    };
    let mut serving = setup().served().await;

    let (subscriber, mut events) = client("subscriber", port);
    subscriber.subscribe("numbers", QoS::ExactlyOnce).await.unwrap();
    within("SUBACK", async { while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::SubAck(_))) {} })
        .await;
    drop(events);

    let (count, mut acknowledged) = watch::channel(0);
    let publishing = tokio::spawn(publish(port, count));
    let mut killed_at = Vec::new();
    for kill in 1..=KILLS {
        // At another moment of the work each time.
        let until = MESSAGES * kill as usize / (KILLS as usize + 1);
        within("acknowledgements", acknowledged.wait_for(|count| *count >= until)).await.unwrap();
        killed_at.push(*acknowledged.borrow());
        serving = setup().in_directory(serving.kill().await).served().await;
    }
    within("the last acknowledgement", publishing).await.unwrap();

    let serving = setup().in_directory(serving.kill().await).served().await;
    let (last, mut events) = client("subscriber", port);
    let mut received: HashMap<usize, usize> = HashMap::new();
    last.publish("numbers", QoS::AtLeastOnce, false, "end").await.unwrap();
    within("all messages", async {
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() {
                match String::from_utf8(publish.payload.to_vec()).unwrap().parse() {
                    Ok(number) => *received.entry(number).or_default() += 1,
                    Err(_) => break,
                }
            }
        }
    })
    .await;
    let missing: Vec<usize> = (0..MESSAGES).filter(|number| !received.contains_key(number)).collect();
    assert_eq!(missing, [0; 0], "killed at {killed_at:?}");
    let twice: Vec<_> = received.iter().filter(|(number, count)| *number % 2 == 1 && **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}, killed at {killed_at:?}");
    let (code, _) = serving.stop().await;
    assert_eq!(code, Some(0));
}

fn client(id: &str, port: u16) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(id, "127.0.0.1", port);
    options.set_clean_session(false).set_inflight(20);
    AsyncClient::new(options, 10)
}

/// Publishes all numbers, some at a time; after the end of a connection it sends again what is not acknowledged in full.
async fn publish(port: u16, acknowledged: watch::Sender<usize>) {
    let mut open: VecDeque<Open> = VecDeque::new();
    let mut next = 0;
    while *acknowledged.borrow() < MESSAGES {
        // The broker may be between two lives.
        if exchange(port, &mut open, &mut next, &acknowledged).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A message that is not acknowledged in full.
struct Open {
    number: usize,
    is_received: bool,
}

impl Open {
    fn id(&self) -> u16 {
        u16::try_from(self.number + 1).unwrap()
    }

    fn packet(&self, dup: u8) -> Vec<u8> {
        let id = self.id().to_be_bytes();
        if self.is_received {
            return [&b"\x62\x02"[..], &id].concat();
        }
        let payload = self.number.to_string();
        let first = 0x32 + 2 * u8::from(self.number % 2 == 1) + dup;
        let bytes = u8::try_from(2 + 7 + 2 + payload.len()).unwrap();
        [&[first, bytes], &b"\x00\x07numbers"[..], &id, payload.as_bytes()].concat()
    }
}

async fn exchange(
    port: u16,
    open: &mut VecDeque<Open>,
    next: &mut usize,
    acknowledged: &watch::Sender<usize>,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    // A session that is kept: MQTT 3.1.1 without a clean session.
    stream.write_all(b"\x10\x15\x00\x04MQTT\x04\x00\x00\x00\x00\x09publisher").await?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await?;
    assert_eq!((connack[0], connack[3]), (0x20, 0));
    for message in open.iter() {
        stream.write_all(&message.packet(if message.is_received { 0 } else { 8 })).await?;
    }
    loop {
        while open.len() < 10 && *next < MESSAGES {
            let message = Open { number: *next, is_received: false };
            stream.write_all(&message.packet(0)).await?;
            open.push_back(message);
            *next += 1;
        }
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        let id = u16::from_be_bytes([answer[2], answer[3]]);
        let place = open.iter().position(|message| message.id() == id);
        match (answer[0], place) {
            (0x40 | 0x70, Some(place)) => {
                open.remove(place);
                acknowledged.send_modify(|count| *count += 1);
                if *acknowledged.borrow() == MESSAGES {
                    return Ok(());
                }
            }
            (0x50, Some(place)) => {
                open[place].is_received = true;
                stream.write_all(&open[place].packet(0)).await?;
            }
            (other, _) => panic!("unexpected packet {other:#x} for {id}"),
        }
    }
}
