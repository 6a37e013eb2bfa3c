//! The messages that one side of a session receives: those of QoS 2 that are not released yet.
//!
//! A message of QoS 2 is passed on when its PUBLISH comes, and its packet identifier is remembered until PUBREL, so
//! that the same PUBLISH after a reconnect is not passed on a second time (MQTT 5.0 section 4.3.3). It outlives
//! connections.

use std::collections::BTreeSet;

/// The receiving half of a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbound {
    unreleased: BTreeSet<u16>,
    /// PUBLISHes of the present connection with QoS 1 or 2 that are not acknowledged in full.
    outstanding: BTreeSet<u16>,
}

/// What a PUBLISH with QoS 2 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// New: pass it on.
    New,
    /// One that has been passed on already.
    Duplicate,
    /// More than the Receive Maximum allows at a time.
    TooMany,
}

impl Inbound {
    /// A connection is up: the Receive Maximum counts anew.
    pub(crate) fn connected(&mut self) {
        self.outstanding.clear();
    }

    /// The packet identifiers of QoS 2 that are not released: what a restart of the process has to keep.
    pub(crate) fn unreleased(&self) -> impl Iterator<Item = u16> {
        self.unreleased.iter().copied()
    }

    /// Restores what was kept.
    pub(crate) fn restore(unreleased: impl IntoIterator<Item = u16>) -> Self {
        Self { unreleased: unreleased.into_iter().collect(), outstanding: BTreeSet::new() }
    }

    /// A PUBLISH with QoS 1 or 2 has come.
    pub(crate) fn handle_publish(&mut self, packet_id: u16, exactly_once: bool, receive_max: u16) -> Receipt {
        let is_new = self.outstanding.insert(packet_id);
        if is_new && self.outstanding.len() > receive_max.into() {
            return Receipt::TooMany;
        }
        if exactly_once && !self.unreleased.insert(packet_id) {
            return Receipt::Duplicate;
        }
        Receipt::New
    }

    /// A PUBACK or a PUBREC with an error is sent: the packet identifier is free.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) {
        self.outstanding.remove(&packet_id);
        self.unreleased.remove(&packet_id);
    }

    /// PUBREL has come; says whether its packet identifier was in use.
    pub(crate) fn handle_pubrel(&mut self, packet_id: u16) -> bool {
        self.outstanding.remove(&packet_id);
        self.unreleased.remove(&packet_id)
    }
}
