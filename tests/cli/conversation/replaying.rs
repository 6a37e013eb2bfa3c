//! The subcommand: many conversations at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use polygate::testing::cli::replay::{self, Error};
use polygate::testing::conversation::play::GatewayAddr;
use tempfile::TempDir;

use crate::conversation::gateway::{PATIENCE, gateway};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: replay::Args,
}

/// Runs `polygate replay` and gives what it prints.
pub async fn replayed(files: &[PathBuf], to: &GatewayAddr, more: &[&str]) -> Result<(bool, String), Error> {
    let to = to.to_string();
    let words = ["replay", "--to", &to].into_iter().chain(more.iter().copied()).map(str::to_owned);
    let cli = Cli::parse_from(words.chain(files.iter().map(|path| path.display().to_string())));
    let mut out = Vec::new();
    let code = tokio::time::timeout(PATIENCE, replay::run_to(cli.args, &mut out)).await.unwrap()?;
    Ok((code == ExitCode::SUCCESS, String::from_utf8(out).unwrap()))
}

pub fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Echoes two bytes at a time, and counts its connections: all of them, and the most at once.
async fn echo(counts: Arc<[AtomicUsize; 3]>) -> GatewayAddr {
    gateway(move |mut peer| {
        let counts = Arc::clone(&counts);
        async move {
            counts[0].fetch_add(1, Ordering::SeqCst);
            let open = counts[1].fetch_add(1, Ordering::SeqCst) + 1;
            counts[2].fetch_max(open, Ordering::SeqCst);
            while let Some(bytes) = peer.take(2).await {
                peer.send(&bytes).await;
            }
            counts[1].fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await
}

/// Twenty connections, three times each, at no more than the rate that was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_rate() {
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let to = echo(Arc::clone(&counts)).await;
    let directory = tempfile::tempdir().unwrap();
    let one = write(&directory, "one.conversation", "> 0102\n< 0102\n> 0304\n< 0304\nclose peer\n");
    let other = write(&directory, "other.conversation", "> 0506\n< 0506\n");
    let begun = Instant::now();
    let (good, out) =
        replayed(&[one, other], &to, &["--connections", "20", "--loops", "3", "--rate", "200/s"]).await.unwrap();
    assert!(good, "{out}");
    // The 60th begins 59 slots of 5 ms after the first.
    assert!(begun.elapsed() >= Duration::from_millis(295));
    assert_eq!(counts[0].load(Ordering::SeqCst), 60);
    assert!(counts[2].load(Ordering::SeqCst) <= 20);
    assert!(out.starts_with("conversations  60 played, 60 as recorded, 0 failed\n"), "{out}");
    assert!(out.contains("\nbytes          180 to the gateway, 180 from it"), "{out}");
    let row = out.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!((row.len(), row[0]), (8, "90"), "{out}");
}

/// More files than connections: each is played once for each loop.
#[tokio::test]
async fn files_are_handed_round() {
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let to = echo(Arc::clone(&counts)).await;
    let directory = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..7).map(|n| write(&directory, &format!("{n}.conversation"), "> 0102\n< 0102\n")).collect();
    let (good, out) = replayed(&files, &to, &["--connections", "3", "--repeat", "2"]).await.unwrap();
    assert!(good && out.starts_with("conversations  14 played"), "{out}");
    assert!(counts[2].load(Ordering::SeqCst) <= 3);
}

/// A failure is explained with its file and line, and is the exit code.
#[tokio::test]
async fn failures_are_told() {
    let to = echo(Arc::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let good = write(&directory, "good.conversation", "> 0102\n< 0102\n");
    let bad = write(&directory, "bad.conversation", "> 0102\n< 0103\n");
    let (all_good, out) = replayed(&[good, bad.clone()], &to, &["--loops", "2"]).await.unwrap();
    assert!(!all_good);
    assert!(out.starts_with("conversations  4 played, 2 as recorded, 2 failed\n"), "{out}");
    let reported = format!(
        "\nfailed (2 times): {}: line 2: the bytes to the device differ at byte 2 of 2\n  expected  0103\n  received  0102\n",
        bad.display()
    );
    assert!(out.ends_with(&reported), "{out}");
}

/// All malformed files are reported before anything is played.
#[tokio::test]
async fn bad_files_are_told_at_once() {
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let to = echo(Arc::clone(&counts)).await;
    let directory = tempfile::tempdir().unwrap();
    let bad = write(&directory, "bad.conversation", "7e\n");
    let none = directory.path().join("none.conversation");
    let error = replayed(&[bad, none], &to, &[]).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("bad.conversation has 1 fault:") && text.contains("none.conversation: no such file"),
        "{text}"
    );
    assert_eq!(error.exit_code(), ExitCode::FAILURE);
    assert_eq!(counts[0].load(Ordering::SeqCst), 0);
}

/// `--bless` writes the answers into the file, once.
#[tokio::test]
async fn bless_rewrites_the_file() {
    let to = echo(Arc::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, "new.conversation", "# asks\n> 0102\n");
    let bless = ["--bless", "--quiet", "100ms"];
    let shown = |path: &Path, word: &str| format!("{}  {word}\n", path.display());
    assert_eq!(replayed(std::slice::from_ref(&file), &to, &bless).await.unwrap(), (true, shown(&file, "recorded")));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "# asks\n> 0102\n< 0102\n");
    assert_eq!(replayed(std::slice::from_ref(&file), &to, &bless).await.unwrap(), (true, shown(&file, "unchanged")));
    assert!(replayed(&[file], &to, &[]).await.unwrap().0);
}
