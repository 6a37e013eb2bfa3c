//! MQTT clients meet the policy that devices meet.

use polygate::testing::auth::{Action, Effect, Options};
use polygate::testing::conn::QoS;

use crate::broker::harness::{BOTH, Client, Connect, TestBroker, Version, rule, soon, users};

/// Users need their password, and clients without a name need leave.
#[tokio::test]
async fn mqtt_clients_prove_who_they_are() {
    let options = Options { users: users(&["u"]), ..Options::default() };
    let broker = TestBroker::with(options.clone(), |_| ()).await;
    let connect = async |version, user| {
        let connect = Connect { user, ..Connect::default() };
        Client::connect_with(version, broker.addr(), "c", connect).await.map(drop)
    };
    for version in BOTH {
        connect(version, Some(("u", "secret"))).await.unwrap();
        for user in [Some(("u", "wrong")), Some(("v", "secret"))] {
            let refused = connect(version, user).await.unwrap_err();
            assert!(refused.contains("BadUserNamePassword"), "{refused}");
        }
        let refused = connect(version, None).await.unwrap_err();
        assert!(refused.contains("NotAuthorized"), "{refused}");
    }
    broker.auth.replace(Options { allow_anonymous: true, ..options }).unwrap();
    for version in BOTH {
        connect(version, None).await.unwrap();
        assert!(connect(version, Some(("u", "wrong"))).await.is_err());
    }
}

/// A denied subscription is reported, and the connection and its other subscriptions stay.
#[tokio::test]
async fn a_denied_subscription_is_told() {
    let rules = vec![
        rule(Effect::Allow, Action::Subscribe, "*", "d/${clientid}/#"),
        rule(Effect::Deny, Action::Subscribe, "*", "d/#"),
        rule(Effect::Deny, Action::All, "*", "$SYS/#"),
    ];
    let options = Options { allow_anonymous: true, rules, ..Options::default() };
    let broker = TestBroker::with(options, |_| ()).await;
    for (version, denied, malformed) in
        [(Version::V3, "Failure", "Failure"), (Version::V5, "NotAuthorized", "TopicFilterInvalid")]
    {
        let mut client = Client::connect(version, broker.addr(), "c").await;
        for filter in ["d/b/x", "d/+/x", "#", "$share/g/d/b/x", "$SYS/#"] {
            assert_eq!(client.try_subscribe(filter).await, denied, "{version:?} {filter}");
        }
        assert_eq!(client.try_subscribe("$share/+/a").await, malformed, "{version:?}");
        client.subscribe("d/c/x").await;
        broker.publish_as_gateway("d/b/x", "not for you").await.unwrap();
        broker.publish_as_gateway("d/c/x", "for you").await.unwrap();
        assert_eq!(client.payload().await, "for you");
    }
    assert_eq!(broker.broker.counters().subscribes_denied.get(), 12);
    assert!(!broker.auth.allows_subscribe("c", "", "d/b/x"), "a device is asked about in the same way");
    assert!(broker.auth.allows_subscribe("c", "", "d/c/x"));
}

/// A denied message goes nowhere: MQTT 5.0 tells why, MQTT 3.1.1 acknowledges it.
#[tokio::test]
async fn a_denied_message_goes_nowhere() {
    let rules = vec![rule(Effect::Deny, Action::Publish, "c", "$SYS/#"), rule(Effect::Deny, Action::Publish, "c", "x")];
    let options = Options { allow_anonymous: true, rules, ..Options::default() };
    let broker = TestBroker::with(options, |_| ()).await;
    let mut device = broker.device("d").await;
    device.subscribe("$SYS/#").await;
    device.subscribe("x").await;
    device.subscribe("y").await;
    for (version, expected) in [(Version::V3, "Success"), (Version::V5, "NotAuthorized")] {
        let mut client = Client::connect(version, broker.addr(), "c").await;
        assert_eq!(client.publish("$SYS/x", "denied").await, expected);
        let mut client = Client::connect(version, broker.addr(), "c").await;
        client.publish_as("x", "denied", 0, false).await;
        assert_eq!(client.publish("y", "allowed").await, "Success");
        assert_eq!(device.payload().await, "allowed", "{version:?}");
    }
    assert_eq!(broker.broker.counters().publishes_denied.get(), 4);
    assert!(!broker.auth.allows_publish("c", "", "$SYS/x"));
    assert!(broker.auth.allows_publish("d", "", "$SYS/x"));
}

/// A will is a message too: whoever may not publish it does not come in with it.
#[tokio::test]
async fn a_connect_with_a_denied_will_is_refused() {
    let rules = vec![rule(Effect::Deny, Action::Publish, "*", "secret/#")];
    let options = Options { allow_anonymous: true, rules, ..Options::default() };
    let broker = TestBroker::with(options, |_| ()).await;
    for version in BOTH {
        for (topic, enters) in [("secret/x", false), ("public/x", true)] {
            let connect = Connect { will: Some(topic), ..Connect::default() };
            let connected = Client::connect_with(version, broker.addr(), "c", connect).await;
            assert_eq!(connected.is_ok(), enters, "{version:?} {topic}");
        }
    }
}

/// Rules that are put in the place of others hold for clients that are connected.
#[tokio::test]
async fn new_rules_hold_at_once() {
    let broker = TestBroker::start().await;
    let mut client = Client::connect(Version::V5, broker.addr(), "c").await;
    let mut device = broker.device("d").await;
    device.subscribe("x").await;
    assert_eq!(client.publish("x", "before").await, "Success");
    let rules = vec![rule(Effect::Deny, Action::Publish, "c", "x")];
    broker.auth.replace(Options { allow_anonymous: true, rules, ..Options::default() }).unwrap();
    assert_eq!(client.publish("x", "after").await, "NotAuthorized");
    device.publish_qos("x", "own", QoS::AtMostOnce).await;
    assert_eq!(device.payload().await, "before");
    assert_eq!(device.payload().await, "own");
}

/// A will is published by the rules that hold when it is due, not by those of the connect.
#[tokio::test]
async fn new_rules_hold_for_wills() {
    let broker = TestBroker::start().await;
    let mut device = broker.device("d").await;
    device.subscribe("#").await;
    let connect = || Connect { will: Some("gone"), ..Connect::default() };
    let allowed = Client::connect_with(Version::V5, broker.addr(), "a", connect()).await.unwrap();
    let denied = Client::connect_with(Version::V5, broker.addr(), "b", connect()).await.unwrap();
    let rules = vec![rule(Effect::Deny, Action::Publish, "b", "gone")];
    broker.auth.replace(Options { allow_anonymous: true, rules, ..Options::default() }).unwrap();
    drop(denied);
    soon("the refusal", async {
        while broker.broker.counters().publishes_denied.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(allowed);
    assert_eq!(device.message().await.from, "a");
}
