//! rmqtt's hooks: MQTT clients meet the same policy as devices.

use std::sync::Arc;

use async_trait::async_trait;
use rmqtt::codec::v5::{PublishAckReason, SubscribeAckReason};
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::session::Session;
use rmqtt::types::{
    AuthResult, ConnectInfo, LastWill, Publish, PublishAclResult, PublishResult, Reason, Subscribe, SubscribeAclResult,
};

use crate::auth::{Auth, Credentials, Origin};
use crate::conn::{Denied, Password, Refused};
use crate::pubsub::embedded::router::Router;
use crate::topic;

/// Asks the policy, and notes when a client's connection is gone.
#[derive(Clone)]
pub(super) struct AccessHooks {
    auth: Auth,
    router: Arc<Router>,
}

impl AccessHooks {
    pub(super) fn new(auth: Auth, router: Arc<Router>) -> Self {
        Self { auth, router }
    }

    /// Puts the gate in the way of every MQTT client.
    pub(super) async fn register(self, context: &ServerContext) {
        let hooks = context.extends.hook_mgr().register();
        for hook in [
            Type::ClientAuthenticate,
            Type::ClientDisconnected,
            Type::ClientSubscribeCheckAcl,
            Type::MessageDropped,
            Type::MessagePublishCheckAcl,
        ] {
            hooks.add(hook, Box::new(self.clone())).await;
        }
        hooks.start().await;
    }

    async fn authenticate(&self, connect: &ConnectInfo) -> AuthResult {
        let client_id: &str = connect.client_id();
        let username = connect.username().map_or("", |username| username);
        let password = connect.password().map(|password| Password::new(password.as_ref()));
        let credentials = Credentials {
            client_id,
            username,
            password: password.as_ref(),
            origin: Origin::Mqtt,
            address: connect.ipaddress().map(|address| address.ip()),
        };
        if let Err(refused) = self.auth.authenticate(credentials).await {
            tracing::debug!(client_id, username, %refused, "MQTT client refused");
            // The library has no code for "server busy".
            return if refused == Refused::Denied(Denied::Credentials) {
                AuthResult::BadUsernameOrPassword
            } else {
                AuthResult::NotAuthorized
            };
        }
        // rmqtt publishes a will without asking anybody, so it is asked about while it can be refused.
        let will = connect.last_will();
        let will_topic: Option<&str> = will.as_ref().map(|will| match will {
            LastWill::V3(will) => &*will.topic,
            LastWill::V5(will) => &*will.topic,
        });
        if let Some(topic) = will_topic
            && (topic::check_name(topic).is_err() || !self.auth.allows_publish(client_id, username, topic))
        {
            self.router.counters().publishes_denied.inc();
            tracing::debug!(client_id, username, topic, "MQTT client refused: its will is not allowed");
            return AuthResult::NotAuthorized;
        }
        AuthResult::Allow(false, None)
    }

    /// An MQTT 3.1.1 client has no way to be told that its message is denied except by losing its
    /// connection; it gets its acknowledgement instead and the message goes nowhere, as MQTT 3.1.1
    /// §3.3.5 allows: a client that reconnects and publishes again would only do so for ever.
    fn check_publish(&self, session: &Session, publish: &Publish) -> PublishAclResult {
        let (client_id, username) = identity(session);
        let topic: &str = &publish.topic;
        let (code, why) = if let Err(malformed) = topic::check_name(topic) {
            (PublishAckReason::TopicNameInvalid, malformed.to_string())
        } else if !self.auth.allows_publish(client_id, username, topic) {
            (PublishAckReason::NotAuthorized, Denied::Publish { topic: topic.to_owned() }.to_string())
        } else {
            return PublishAclResult::allow();
        };
        self.router.counters().publishes_denied.inc();
        tracing::debug!(client_id, username, why, "message of an MQTT client refused");
        PublishAclResult(PublishResult::reason_code(code, Some(why.into()), false))
    }

    fn check_subscribe(&self, session: &Session, subscribe: &Subscribe) -> SubscribeAclResult {
        let (client_id, username) = identity(session);
        // rmqtt has taken the filter apart, and not looked at the parts.
        let filter = match subscribe.opts.shared_group() {
            Some(group) => format!("$share/{group}/{}", subscribe.topic_filter),
            None => subscribe.topic_filter.to_string(),
        };
        let (code, why) = if let Err(malformed) = topic::parse_filter(&filter) {
            (SubscribeAckReason::TopicFilterInvalid, malformed.to_string())
        } else if !self.auth.allows_subscribe(client_id, username, &filter) {
            (SubscribeAckReason::NotAuthorized, Denied::Subscribe { filter }.to_string())
        } else {
            return SubscribeAclResult::new_success(subscribe.opts.qos(), None);
        };
        self.router.counters().subscribes_denied.inc();
        tracing::debug!(client_id, username, why, "subscription of an MQTT client refused");
        SubscribeAclResult::new_failure(code)
    }
}

/// Client id and user name; the latter is empty when there is none.
fn identity(session: &Session) -> (&str, &str) {
    (&session.id.client_id, session.id.username.as_deref().unwrap_or(""))
}

#[async_trait]
impl Handler for AccessHooks {
    #[allow(clippy::wildcard_enum_match_arm, reason = "rmqtt has hooks for everything, and the gate stands at five")]
    async fn hook(&self, parameter: &Parameter, _last: Option<HookResult>) -> ReturnType {
        let result = match parameter {
            Parameter::ClientAuthenticate(connect) => HookResult::AuthResult(self.authenticate(connect).await),
            Parameter::MessagePublishCheckAcl(session, publish) => {
                HookResult::PublishAclResult(self.check_publish(session, publish))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                HookResult::SubscribeAclResult(self.check_subscribe(session, subscribe))
            }
            Parameter::ClientDisconnected(session, _) => {
                self.router.clients().went_offline(&session.id);
                return (true, None);
            }
            Parameter::MessageDropped(Some(_), _, _, Reason::MessageQueueFull) => {
                self.router.counters().client_dropped.inc();
                return (true, None);
            }
            // Messages dropped for other reasons have been refused above, or have expired, or their
            // session has ended.
            _ => return (true, None),
        };
        (false, Some(result))
    }
}
