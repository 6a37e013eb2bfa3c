//! The vehicles and the platform of GB/T 32960 in examples/, against the guest, with the messages seen over MQTT.

use crate::harness::Setup;
use crate::harness::recorded::{play_all, recorded};

/// Every vehicle gets the recorded answers, and MQTT clients the recorded messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_vehicles() {
    let gateway = Setup::guest("gb32960").start().await;
    play_all(&gateway, &recorded("examples/conversations/gb32960")).await;
}
