//! Any text as a conversation: it is parsed or refused, its faults are inside of it, and the printed form has the same
//! meaning.

#![no_main]

use libfuzzer_sys::fuzz_target;
use polygate::testing::conversation::Conversation;

fuzz_target!(|text: &str| {
    match Conversation::parse("fuzz", text) {
        Ok(conversation) => {
            let printed = conversation.to_string();
            let read = Conversation::parse("fuzz", &printed);
            let read = read.unwrap_or_else(|faults| panic!("printed as\n{printed}\nwhich is refused: {faults}"));
            assert_eq!(read, conversation, "printed as\n{printed}");
            assert_eq!(read.to_string(), printed);
        }
        Err(faults) => {
            let lines = text.split('\n').count();
            assert!(!faults.faults().is_empty());
            for fault in faults.faults() {
                assert!((1..=lines).contains(&(fault.line as usize)) && fault.column >= 1, "{fault}");
            }
        }
    }
});
