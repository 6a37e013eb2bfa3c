//! Percentage in basis points (1/10,000), as in `"5%"` and `"0.25%"`: parsed, printed, compared exactly.

use std::fmt;

/// Percentage in basis points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    /// Basis points, `0..=10_000`; more saturates.
    pub fn new(basis_points: u16) -> Self {
        Self(basis_points.min(10_000))
    }

    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// Parses `"5%"` or `"0.25%"`, with at most two decimals, `0%..=100%`. `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let (whole, hundredths) = text.strip_suffix('%')?.split_once('.').unwrap_or((text.strip_suffix('%')?, "0"));
        if !(1..=3).contains(&whole.len()) || !(1..=2).contains(&hundredths.len()) {
            return None;
        }
        if !digits(whole) || !digits(hundredths) {
            return None;
        }
        let tenths: u32 = if hundredths.len() == 1 { 10 } else { 1 };
        // Three digits before the point make up to 99,999, which 16 bits do not hold.
        let basis_points = whole.parse::<u32>().ok()? * 100 + hundredths.parse::<u32>().ok()? * tenths;
        u16::try_from(basis_points).ok().filter(|basis_points| *basis_points <= 10_000).map(Self)
    }

    /// Whether `part` of `whole` exceeds this percentage.
    pub fn is_exceeded(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 10_000 > u128::from(whole) * u128::from(self.0)
    }

    /// Whether item number `index` is selected. Over any 10,000 consecutive items the percentage is exact, and evenly
    /// spread.
    pub fn has(self, index: u32) -> bool {
        let (index, points) = (u64::from(index % 10_000), u64::from(self.0));
        (index + 1) * points / 10_000 > index * points / 10_000
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, hundredths) = (self.0 / 100, self.0 % 100);
        match (hundredths, hundredths % 10) {
            (0, _) => write!(f, "{whole}%"),
            (_, 0) => write!(f, "{whole}.{}%", hundredths / 10),
            _ => write!(f, "{whole}.{hundredths:02}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Of any 10,000 consecutive connections, a canary gets exactly its percentage; of fewer, one more or less.
        #[test]
        fn a_percentage_is_exact(basis_points in 0..=10_000u16, first in 0..u32::MAX / 2, count in 0..10_000u32) {
            let percent = Percent::new(basis_points);
            let among = |indices: std::ops::Range<u32>| indices.filter(|index| percent.has(*index)).count();
            prop_assert_eq!(among(first..first + 10_000), usize::from(basis_points));
            let expected = f64::from(count) * f64::from(basis_points) / 10_000.0;
            prop_assert!((among(0..count) as f64 - expected).abs() <= 1.0);
        }

        /// A percentage round-trips through its text.
        #[test]
        fn a_percentage_round_trips(basis_points in 0..=10_000u16) {
            let percent = Percent::new(basis_points);
            prop_assert_eq!(Percent::parse(&percent.to_string()), Some(percent));
        }

        /// Other texts are rejected, and nothing panics.
        #[test]
        fn other_texts_are_rejected(text in "[0-9.%]{0,8}") {
            if let Some(percent) = Percent::parse(&text) {
                let value: f64 = text.trim_end_matches('%').parse().unwrap();
                prop_assert!((value * 100.0 - f64::from(percent.basis_points())).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn examples() {
        for (text, basis_points) in
            [("0%", 0), ("5%", 500), ("0.5%", 50), ("0.25%", 25), ("0.05%", 5), ("100%", 10_000)]
        {
            assert_eq!(Percent::parse(text), Some(Percent::new(basis_points)));
            assert_eq!(Percent::new(basis_points).to_string(), text);
        }
        for text in [
            "", "%", "5", ".5%", "5.%", "101%", "655.99%", "700%", "999.99%", "100.01%", "-5%", "5 %", "1e2%",
            "0.005%", "0005%",
        ] {
            assert_eq!(Percent::parse(text), None, "{text:?}");
        }
        assert!(Percent::new(500).is_exceeded(6, 100) && !Percent::new(500).is_exceeded(5, 100));
    }
}
