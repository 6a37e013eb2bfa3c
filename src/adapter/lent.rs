use std::ops::{Deref, DerefMut};

use super::Adapter;

/// A connection's adapter, which an instance of a guest may hold for the length of a call.
///
/// A store of the engine owns what its guest can reach, and an instance may serve one connection or many; so the
/// connection hands its adapter over with the call and takes it back with the answer. Between the two the
/// connection waits for nothing else, so nobody misses it: reaching for it then is a fault of this program, and panics.
#[derive(Debug)]
pub struct Lent(Option<Box<Adapter>>);

impl Lent {
    /// Not lent yet.
    pub fn new(adapter: Adapter) -> Self {
        Self(Some(Box::new(adapter)))
    }

    /// Hands it over, until [`Lent::give_back`].
    pub fn lend(&mut self) -> Box<Adapter> {
        self.0.take().expect(HERE)
    }

    /// The call is over.
    pub fn give_back(&mut self, adapter: Box<Adapter>) {
        self.0 = Some(adapter);
    }
}

const HERE: &str = "the adapter is lent only while its connection waits for the call";

impl Deref for Lent {
    type Target = Adapter;

    fn deref(&self) -> &Adapter {
        self.0.as_deref().expect(HERE)
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Adapter {
        self.0.as_deref_mut().expect(HERE)
    }
}
