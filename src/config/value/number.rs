//! Numbers, spans of time, sizes.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

use super::{ValueType, cut, span};
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;
use crate::percent::Percent;

/// A whole number.
#[derive(Debug)]
pub(in crate::config) struct Count(pub(in crate::config) RangeInclusive<u32>);

impl ValueType for Count {
    type Value = u32;

    fn expected(&self) -> String {
        "a whole number".to_owned()
    }

    fn name(&self) -> String {
        "integer".to_owned()
    }

    fn range(&self) -> String {
        span(self.0.start(), self.0.end())
    }

    fn show(&self, value: &u32) -> String {
        value.to_string()
    }

    fn read(&self, item: &Item<'_>) -> Result<u32, ErrorReported> {
        let integer = item.value().as_integer().ok_or_else(|| item.wrong_type(self.expected()))?;
        // A number that is no u32 is out of every range.
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if self.0.contains(&number) => Ok(number),
            _ => Err(item.fault(Fault::OutOfRange { found: cut(integer.to_string()), range: self.range() })),
        }
    }
}

/// A whole number that may be less than nothing.
#[derive(Debug)]
pub(in crate::config) struct Integer(pub(in crate::config) RangeInclusive<i32>);

impl ValueType for Integer {
    type Value = i32;

    fn expected(&self) -> String {
        "a whole number".to_owned()
    }

    fn name(&self) -> String {
        "integer".to_owned()
    }

    fn range(&self) -> String {
        span(self.0.start(), self.0.end())
    }

    fn show(&self, value: &i32) -> String {
        value.to_string()
    }

    fn read(&self, item: &Item<'_>) -> Result<i32, ErrorReported> {
        let integer = item.value().as_integer().ok_or_else(|| item.wrong_type(self.expected()))?;
        match i32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if self.0.contains(&number) => Ok(number),
            _ => Err(item.fault(Fault::OutOfRange { found: cut(integer.to_string()), range: self.range() })),
        }
    }
}

/// A span of time.
#[derive(Debug)]
pub(in crate::config) struct Span(pub(in crate::config) RangeInclusive<Duration>);

impl ValueType for Span {
    type Value = Duration;

    fn expected(&self) -> String {
        "a duration such as \"30s\" or \"500ms\"".to_owned()
    }

    fn name(&self) -> String {
        "duration".to_owned()
    }

    fn range(&self) -> String {
        let written = |span: &Duration| humantime::format_duration(*span).to_string();
        span(written(self.0.start()), written(self.0.end()))
    }

    fn show(&self, value: &Duration) -> String {
        format!("\"{}\"", humantime::format_duration(*value))
    }

    fn read(&self, item: &Item<'_>) -> Result<Duration, ErrorReported> {
        // humantime adds the parts up and overflows at the far end of u64, which takes at least 19 characters.
        const BYTES_MAX: usize = 16;
        let text = item.text(&self.expected())?;
        let malformed = || Fault::Malformed { found: text.to_owned(), expected: self.expected() };
        let parsed = match text.len() {
            ..=BYTES_MAX => humantime::parse_duration(text).ok(),
            _ => None,
        };
        let duration = parsed.ok_or_else(|| item.fault(malformed()))?;
        if self.0.contains(&duration) {
            Ok(duration)
        } else {
            Err(item.fault(Fault::OutOfRange { found: format!("{text:?}"), range: self.range() }))
        }
    }
}

/// A number of bytes.
#[derive(Debug)]
pub(in crate::config) struct Size(pub(in crate::config) RangeInclusive<u64>);

impl ValueType for Size {
    type Value = usize;

    fn expected(&self) -> String {
        "a size such as \"64KiB\" or \"1MB\"".to_owned()
    }

    fn name(&self) -> String {
        "size".to_owned()
    }

    fn range(&self) -> String {
        span(size(*self.0.start()), size(*self.0.end()))
    }

    fn show(&self, value: &usize) -> String {
        format!("\"{}\"", size(*value as u64))
    }

    fn read(&self, item: &Item<'_>) -> Result<usize, ErrorReported> {
        let text = item.text(&self.expected())?;
        let malformed = || Fault::Malformed { found: text.to_owned(), expected: self.expected() };
        let bytes = text.parse::<ByteSize>().map_err(|_| item.fault(malformed()))?.as_u64();
        match usize::try_from(bytes) {
            Ok(fits) if self.0.contains(&bytes) => Ok(fits),
            _ => Err(item.fault(Fault::OutOfRange { found: cut(format!("{text:?}")), range: self.range() })),
        }
    }
}

/// A part of a whole.
#[derive(Debug)]
pub(in crate::config) struct Percentage;

impl ValueType for Percentage {
    type Value = Percent;

    fn expected(&self) -> String {
        "a percentage such as \"5%\" or \"0.5%\"".to_owned()
    }

    fn name(&self) -> String {
        "percentage".to_owned()
    }

    fn range(&self) -> String {
        span(Percent::new(1), Percent::new(10_000))
    }

    fn show(&self, value: &Percent) -> String {
        format!("\"{value}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<Percent, ErrorReported> {
        let text = item.text(&self.expected())?;
        match Percent::parse(text) {
            Some(share) if share.basis_points() > 0 => Ok(share),
            Some(_) => Err(item.fault(Fault::OutOfRange { found: format!("{text:?}"), range: self.range() })),
            None => Err(item.fault(Fault::Malformed { found: text.to_owned(), expected: self.expected() })),
        }
    }
}

/// A number of bytes in the largest binary unit that has no fraction.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_the_unit_that_fits() {
        for (bytes, written) in [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (65536, "64KiB"), (1 << 32, "4GiB")] {
            assert_eq!(size(bytes), written);
            assert_eq!(written.parse::<ByteSize>().unwrap().as_u64(), bytes);
        }
    }
}
