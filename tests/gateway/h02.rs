//! The H02 trackers of examples/, against the guest, with the messages seen over MQTT.

use crate::harness::Setup;
use crate::harness::recorded::{play_all, recorded};

/// Every tracker gets the recorded answers, and MQTT clients the recorded messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_trackers() {
    let gateway = Setup::guest("h02").start().await;
    play_all(&gateway, &recorded("examples/conversations/h02")).await;
}
