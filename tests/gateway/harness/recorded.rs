use std::path::Path;
use std::time::Duration;

use polygate::testing::conversation::Conversation;
use polygate::testing::conversation::play::mqtt_observer::{self, Watch};
use polygate::testing::conversation::play::{BrokerUrl, GatewayAddr, MqttObserver, Options, play};

use super::GatewayUnderTest;

/// The conversations in a folder of the repository, by name.
pub fn recorded(folder: &str) -> Vec<Conversation> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Conversation::read(file).unwrap()).collect()
}

/// Replays them one after the other: devices and an MQTT client receive the recorded data.
pub async fn play_all(gateway: &GatewayUnderTest, conversations: &[Conversation]) {
    let topics = Watch::Topics(mqtt_observer::topics(conversations));
    let broker = BrokerUrl::from(gateway.broker());
    let witness = MqttObserver::connect(&broker, "", topics, Duration::from_secs(10)).await.unwrap();
    let to = GatewayAddr::from(gateway.listener());
    for conversation in conversations {
        let played = play(conversation, &to, Some(&witness), &Options::default(), |_| {}).await;
        if let Err(error) = played {
            panic!("{}: {error}", conversation.name());
        }
    }
}
