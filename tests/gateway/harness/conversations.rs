use std::path::Path;
use std::time::Duration;

use polygate::conversation::Conversation;
use polygate::conversation::play::witness::{self, Watch};
use polygate::conversation::play::{BrokerUrl, GatewayAddr, Options, Witness, play};

use super::GatewayUnderTest;

/// The conversations of a folder of examples/conversations, by name.
pub fn recorded(folder: &str) -> Vec<Conversation> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/conversations").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Conversation::read(file).unwrap()).collect()
}

/// Plays each on a connection of its own; all bytes, messages and ends must be as they were recorded.
pub async fn play_all(gateway: &GatewayUnderTest, conversations: &[Conversation]) {
    let topics = Watch::Topics(witness::topics(conversations));
    let broker = BrokerUrl::from(gateway.broker());
    let witness = Witness::connect(&broker, "", topics, Duration::from_secs(10)).await.unwrap();
    let to = GatewayAddr::from(gateway.listener());
    for conversation in conversations {
        let played = play(conversation, &to, Some(&witness), &Options::default(), |_| {}).await;
        if let Err(error) = played {
            panic!("{}: {error}", conversation.name());
        }
    }
}
