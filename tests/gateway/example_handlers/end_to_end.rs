//! Device, gateway, handler, broker and MQTT client, all of them real.

use argon2::{Argon2, CustomizedPasswordHasher, Params};

use crate::example_handlers::example::{Example, Process};
use crate::harness::mqtt::MqttClient;
use crate::harness::relay::Relay;
use crate::harness::{GatewayUnderTest, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn rust() {
    serves_devices(Example::Rust).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    serves_devices(Example::Python).await;
}

/// The configuration does not say which of the two services the handler has: the gateway finds out.
#[tokio::test(flavor = "multi_thread")]
async fn python_streaming() {
    serves_devices(Example::PythonStreaming).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node() {
    serves_devices(Example::Node).await;
}

async fn serves_devices(example: Example) {
    let mut served = Served::start(example).await;
    lines_become_messages_and_back(&served).await;
    what_the_gateway_refuses_is_told(&served).await;
    a_line_without_an_end_is_told_and_closed(&served).await;
    a_client_id_belongs_to_its_last_connection(&served).await;
    a_restarted_handler_gets_its_devices_back(&mut served).await;
}

async fn lines_become_messages_and_back(served: &Served) {
    let gateway = &served.gateway;
    let mut console = MqttClient::connect(gateway.broker(), "console").await;
    console.subscribe("devices/+/up").await;

    let mut device = gateway.connect().await;
    device.send("login meter-7 sec").await;
    device.send("ret\r\n21.5\n\n").await;
    device.expect("ok\nok\nok\n").await;
    let topic = "devices/meter-7/up".to_owned();
    assert_eq!(console.next_text().await, (topic.clone(), "21.5".to_owned()));
    assert_eq!(console.next_text().await, (topic.clone(), String::new()));

    console.publish("devices/meter-7/down", "reboot").await;
    device.expect("reboot\n").await;
    console.publish("devices/meter-8/down", "for somebody else").await;
    device.send("after the reboot\n").await;
    device.expect("ok\n").await;
    assert_eq!(console.next_text().await, (topic, "after the reboot".to_owned()));
}

async fn what_the_gateway_refuses_is_told(served: &Served) {
    let mut device = served.gateway.connect().await;
    device.send("21.5\n").await;
    device.expect("refused: expected login <id> [<password>]\n").await;
    for wrong in ["login intruder secret\n", "login meter-7 wrong\n"] {
        device.send(wrong).await;
        device.expect("refused: the username is unknown or the password is wrong\n").await;
    }
    device.send("login meter-7 secret\n").await;
    device.expect("ok\n").await;
    device.send("login meter-7 secret\n").await;
    device.expect("refused: the connection is authenticated already, as client \"meter-7\"\n").await;
}

async fn a_line_without_an_end_is_told_and_closed(served: &Served) {
    let mut device = served.gateway.connect().await;
    device.send("x".repeat(1025)).await;
    device.expect("refused: a line has at most 1024 bytes\n").await;
    device.expect_closed().await;
}

async fn a_client_id_belongs_to_its_last_connection(served: &Served) {
    let (mut former, mut latter) = (served.gateway.connect().await, served.gateway.connect().await);
    for device in [&mut former, &mut latter] {
        device.send("login meter-7 secret\n").await;
        device.expect("ok\n").await;
    }
    former.expect_closed().await;
    latter.send("still here\n").await;
    latter.expect("ok\n").await;
}

/// A device that is quiet meanwhile keeps its connection; its next line is one that the new process knows nothing of.
async fn a_restarted_handler_gets_its_devices_back(served: &mut Served) {
    let mut quiet = served.gateway.connect().await;
    quiet.send("login meter-7 secret\n").await;
    quiet.expect("ok\n").await;
    served.restart().await;
    quiet.send("21.5\n").await;
    quiet.expect_closed().await;

    let mut device = served.gateway.connect().await;
    device.send("login meter-7 secret\n21.5\n").await;
    device.expect("ok\nok\n").await;
}

/// A gateway with a handler behind it.
struct Served {
    gateway: GatewayUnderTest,
    example: Example,
    handler: Option<Process>,
    relay: Relay,
}

impl Served {
    async fn start(example: Example) -> Self {
        let relay = Relay::start().await;
        let cheap = Params::new(8, 1, 1, None).unwrap();
        let hash = Argon2::default().hash_password_customized(b"secret", b"salt salt salt s", None, Some(19), cheap);
        // One HTTP/2 connection to the handler: what one device makes the gateway notice is noticed for all.
        let gateway = Setup::grpc_at(&format!("http://{}", relay.address))
            .handler("channels = 1")
            .listener("mountpoint = \"devices/\"")
            .auth(&format!(
                "allow_anonymous = true\n[[auth.users]]\nusername = \"meter-7\"\npassword_hash = \"{}\"\n",
                hash.unwrap()
            ))
            .start()
            .await;
        let mut served = Self { gateway, example, handler: None, relay };
        served.restart().await;
        served
    }

    /// Kills the handler, if there is one, and starts it anew.
    async fn restart(&mut self) {
        if let Some(handler) = self.handler.take() {
            handler.kill().await;
        }
        let handler = Process::start(self.example, &format!("http://{}", self.gateway.adapter())).await;
        self.relay.lead_to(handler.address);
        self.handler = Some(handler);
    }
}
