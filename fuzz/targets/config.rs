//! Any text as a configuration: it is valid or refused, each fault has a line of the text, and no report shows a
//! secret.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use polygate::testing::config::{Config, Faults, ExternalFiles};

fuzz_target!(|text: &str| {
    // Referenced files do not exist.
    let outside = ExternalFiles { base_dir: Path::new("/nonexistent"), env: &|_| Some("s3cr3t-of-the-environment".into()) };
    match Config::parse_with(text, "fuzz.toml", outside) {
        Ok((_, warnings)) => warnings.iter().for_each(|warning| assert!(!warning.to_string().is_empty())),
        Err(faults) => {
            let report = faults.to_string();
            assert!(!report.contains("s3cr3t-of"), "{report}");
            let Faults::Found { faults, .. } = faults else { panic!("{report}") };
            let lines = text.split('\n').count();
            assert!(!faults.is_empty());
            for (place, fault) in faults {
                assert!(place.line.is_none_or(|line| (1..=lines).contains(&line)), "{place:?}: {fault}");
            }
        }
    }
});
