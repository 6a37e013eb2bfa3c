//! Any bytes as messages of ExProto: what is decoded is encoded to bytes that are decoded to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::exproto::proto;
use prost::Message;

fn round_trip<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(&message.encode_to_vec()[..]).expect("its own bytes");
        assert_eq!(message, again);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 8 {
        0 => round_trip::<proto::SendBytesRequest>(bytes),
        1 => round_trip::<proto::AuthenticateRequest>(bytes),
        2 => round_trip::<proto::TimerRequest>(bytes),
        3 => round_trip::<proto::PublishRequest>(bytes),
        4 => round_trip::<proto::SubscribeRequest>(bytes),
        5 => round_trip::<proto::RawPublishRequest>(bytes),
        6 => round_trip::<proto::CodeResponse>(bytes),
        _ => round_trip::<proto::ReceivedMessagesRequest>(bytes),
    }
});
