//! What `polygate guest new` begins a project with, in each language, built as its README says, behind a real gateway.

use crate::harness::Setup;
use crate::harness::recorded::{play_all, recorded};

/// The conversation that comes with the template goes as it says.
async fn hello(language: &str) {
    let gateway = Setup::guest(&format!("large/lines-{language}")).start().await;
    play_all(&gateway, &recorded(&format!("guests/templates/{language}/conversations"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c() {
    hello("c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go() {
    hello("go").await;
}
