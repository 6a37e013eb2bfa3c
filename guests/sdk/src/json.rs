//! JSON, as much as a handler needs: objects are written straight into text, and small documents are read.
//!
//! There is no floating point here. A device sends scaled integers, and [`Object::decimal`] writes them digit for digit
//! (22588456 with six places is `22.588456`). That is exact, and it spares every instance the tables that printing and
//! reading of floats need: the constants of a component are copied into the memory of each of its instances.

mod read;
mod write;

pub use read::{DEPTH_MAX, Fault, Value, parse};
pub use write::{Array, Object, object};
