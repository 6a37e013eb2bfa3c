//! How the values of keys are written: each form says what it expects, in errors and in the reference,
//! and reads a value.

use std::fmt::Display;

use super::diagnostics::ErrorReported;
use super::read::Item;

mod address;
mod framing;
mod isolation;
mod list;
mod network;
mod number;
mod rate;
mod secret;
mod swap;
mod text;

pub(super) use address::{Address, BindForm, MqttBindForm};
pub(super) use framing::{DelimiterForm, WidthForm};
pub(super) use isolation::IsolationForm;
pub(super) use list::{List, Located, Paths, Texts};
pub(super) use network::{AccessForm, NetworkForm, ProxyForm};
pub(super) use number::{Count, Integer, Percentage, Size, Span};
pub(super) use rate::RateForm;
pub(super) use secret::{Secret, SecretSource};
pub(super) use swap::SwapForm;
pub(super) use text::{Choice, FilePath, Flag, Text};

/// A way to write a value.
pub(super) trait ValueType: Sync {
    /// What is read.
    type Value;

    /// The form with its article, for errors: `a duration such as "30s"`.
    fn expected(&self) -> String;

    /// The form's name, for the reference.
    fn name(&self) -> String;

    /// First and last value, for errors and the reference; empty where there is no such thing.
    fn range(&self) -> String {
        String::new()
    }

    /// A value as it is written in the file.
    fn show(&self, value: &Self::Value) -> String;

    /// Reads a value, or records what is wrong with it.
    fn read(&self, item: &Item<'_>) -> Result<Self::Value, ErrorReported>;
}

/// A key, its form, and what it means.
#[derive(Debug)]
pub(super) struct Key<F, P> {
    pub(super) name: &'static str,
    pub(super) form: F,
    pub(super) presence: P,
    pub(super) about: &'static str,
}

/// What it means that a key is absent.
pub(super) trait Presence<F: ValueType>: Sync {
    /// What a key of this presence has.
    type Value;

    fn present(value: F::Value) -> Self::Value;

    /// What an absent key has; `None` where it must be there.
    fn absent(&self) -> Option<Self::Value>;

    /// For the reference.
    fn describe(&self, form: &F) -> String;
}

/// The key must be there.
#[derive(Debug)]
pub(super) struct Required;

/// Without the key, its value is this.
#[derive(Debug)]
pub(super) struct DefaultTo<V>(pub(super) fn() -> V);

/// Without the key, something else happens, which the words tell.
#[derive(Debug)]
pub(super) struct Optional(pub(super) &'static str);

impl<F: ValueType> Presence<F> for Required {
    type Value = F::Value;

    fn present(value: F::Value) -> F::Value {
        value
    }

    fn absent(&self) -> Option<F::Value> {
        None
    }

    fn describe(&self, _: &F) -> String {
        "required".to_owned()
    }
}

impl<F: ValueType<Value = V>, V> Presence<F> for DefaultTo<V> {
    type Value = V;

    fn present(value: V) -> V {
        value
    }

    fn absent(&self) -> Option<V> {
        Some(self.0())
    }

    fn describe(&self, form: &F) -> String {
        format!("`{}`", form.show(&self.0()))
    }
}

impl<F: ValueType> Presence<F> for Optional {
    type Value = Option<F::Value>;

    fn present(value: F::Value) -> Option<F::Value> {
        Some(value)
    }

    fn absent(&self) -> Option<Option<F::Value>> {
        Some(None)
    }

    fn describe(&self, _: &F) -> String {
        self.0.to_owned()
    }
}

/// A number that may have as many digits as the user likes, as errors show it.
fn cut(number: String) -> String {
    match number.char_indices().nth(40) {
        None => number,
        Some((end, _)) => format!("{}…", &number[..end]),
    }
}

/// First and last value, as errors and the reference write it.
fn span(first: impl Display, last: impl Display) -> String {
    format!("{first}..={last}")
}
