//! Rates: an amount in a time.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

use super::ValueType;
use super::cut;
use super::number::{Size, size};
use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Item;
use crate::rate::Rate;

/// A number or a size in a second, a minute or an hour. What may pass at once is the reader's to choose.
#[derive(Debug)]
pub(in crate::config) enum RateForm {
    /// `"1000/s"`.
    Count(RangeInclusive<u64>),
    /// `"1MiB/s"`.
    Size(RangeInclusive<u64>),
}

const SPANS: [(&str, Duration); 3] =
    [("s", Duration::from_secs(1)), ("m", Duration::from_secs(60)), ("h", Duration::from_secs(60 * 60))];

impl RateForm {
    fn amounts(&self) -> &RangeInclusive<u64> {
        match self {
            Self::Count(amounts) | Self::Size(amounts) => amounts,
        }
    }

    /// The amount of a text; `None` when it is of no such form. One that is no u64 is out of every range.
    fn amount(&self, text: &str) -> Option<u64> {
        match self {
            Self::Count(_) if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) => None,
            Self::Count(_) => Some(text.parse().unwrap_or(u64::MAX)),
            Self::Size(_) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
        }
    }
}

impl ValueType for RateForm {
    type Value = Rate;

    fn expected(&self) -> String {
        match self {
            Self::Count(_) => "a rate such as \"1000/s\" or \"10/m\"".to_owned(),
            Self::Size(_) => "a rate such as \"1MiB/s\" or \"64KB/m\"".to_owned(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Count(_) => "rate".to_owned(),
            Self::Size(_) => "rate of bytes".to_owned(),
        }
    }

    fn range(&self) -> String {
        let amounts = match self {
            Self::Count(amounts) => super::span(amounts.start(), amounts.end()),
            Self::Size(amounts) => Size(amounts.clone()).range(),
        };
        format!("{amounts} in a second (s), minute (m) or hour (h)")
    }

    fn show(&self, rate: &Rate) -> String {
        let amount = match self {
            Self::Count(_) => rate.amount().to_string(),
            Self::Size(_) => size(rate.amount()),
        };
        let span = SPANS.iter().find(|(_, span)| *span == rate.per()).map_or("?", |(name, _)| name);
        format!("\"{amount}/{span}\"")
    }

    fn read(&self, item: &Item<'_>) -> Result<Rate, ErrorReported> {
        let text = item.text(&self.expected())?;
        let read = text.split_once('/').and_then(|(amount, span)| {
            let (_, span) = SPANS.iter().find(|(name, _)| *name == span)?;
            Some((self.amount(amount)?, *span))
        });
        let Some((amount, span)) = read else {
            return Err(item.fault(Fault::Malformed { found: text.to_owned(), expected: self.expected() }));
        };
        match NonZeroU64::new(amount) {
            Some(nonzero) if self.amounts().contains(&amount) => Ok(Rate::smooth(nonzero, span)),
            _ => Err(item.fault(Fault::OutOfRange { found: cut(format!("{text:?}")), range: self.range() })),
        }
    }
}
