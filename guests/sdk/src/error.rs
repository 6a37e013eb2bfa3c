//! Why a handler cannot go on.

use core::any::Any;
use core::fmt;

/// What an event gives: nothing, or the reason why the handler cannot go on.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// Why a handler cannot go on: any error, so that `?` takes them all, or a text ([`Error::new`]).
///
/// It shows as the error with what led to it. A `Box<dyn core::error::Error>` would do the same, and carry what each error's
/// `Debug` needs into every component: for a text alone these are tables of 5 KiB in the memory of each instance.
pub struct Error(Box<dyn Reason>);

impl Error {
    /// For a reason that has no type of its own.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Box::new(Text(text.into())))
    }

    /// The error that it was made of, if it was a `T`.
    #[must_use]
    pub fn downcast_ref<T: core::error::Error + 'static>(&self) -> Option<&T> {
        self.0.any().downcast_ref()
    }
}

impl<T: core::error::Error + 'static> From<T> for Error {
    fn from(error: T) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(out)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(out)
    }
}

trait Reason {
    fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result;
    fn any(&self) -> &dyn Any;
}

struct Text(String);

impl Reason for Text {
    fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }

    fn any(&self) -> &dyn Any {
        self
    }
}

impl<T: core::error::Error + 'static> Reason for T {
    fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(out, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }

    fn any(&self) -> &dyn Any {
        self
    }
}
