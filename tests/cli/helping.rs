//! Help, completions, man pages, and errors of usage.

use crate::program::{run, run_into};

/// The names of the subcommands that people use, `help` not among them.
fn commands() -> Vec<String> {
    let definition = polygate::testing::cli::definition();
    let shown = definition.get_subcommands().filter(|command| !command.is_hide_set());
    shown.map(|command| command.get_name().to_owned()).collect()
}

/// Every command's help begins with what it does and ends with an example of itself.
#[tokio::test]
async fn every_command_has_an_example() {
    assert!(commands().len() >= 6);
    for command in commands() {
        let output = run(&[&command, "--help"]).await;
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{command}");
        let (head, examples) = output.stdout.split_once("\nExample").unwrap_or_else(|| panic!("no example: {command}"));
        assert!(examples.contains(&format!("\n  polygate {command}")), "{examples}");
        let first = head.lines().next().unwrap();
        assert!(first.starts_with(char::is_uppercase) && first.len() < 90, "{first}");
        assert_eq!(run(&["help", &command]).await.stdout, output.stdout);
    }
}

/// The commands for guests have help of their own, with examples, and pages.
#[tokio::test]
async fn commands_for_guests() {
    for command in ["new", "check", "test", "bench"] {
        let output = run(&["guest", command, "--help"]).await;
        assert_eq!(output.code, Some(0));
        assert!(output.stdout.contains(&format!("\n  polygate guest {command} ")), "{}", output.stdout);
        let page = run(&["man", "guest", command]).await;
        assert_eq!((page.code, &*page.stderr), (Some(0), ""));
        assert!(page.stdout.contains(&format!(".TH polygate-guest-{command} 1")), "{}", page.stdout);
    }
}

/// The first page says where to start and what exit codes mean.
#[tokio::test]
async fn the_first_page() {
    let output = run(&["--help"]).await;
    assert_eq!(output.code, Some(0));
    for command in commands() {
        assert!(output.stdout.contains(&format!("\n  {command} ")), "{command}");
    }
    assert!(output.stdout.contains("Start with:\n  polygate demo\n"), "{}", output.stdout);
    assert!(output.stdout.contains("Exit codes: 0 success, 1 failure, 2 wrong usage"));
    let version = run(&["--version"]).await;
    assert_eq!((version.code, version.stdout), (Some(0), format!("polygate {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Wrong usage exits with 2 and says what was expected, on stderr.
#[tokio::test]
async fn wrong_usage() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "Usage: polygate [OPTIONS] <COMMAND>"),
        (&["serv"], "a similar subcommand exists: 'serve'"),
        (&["serve"], "--config <FILE>"),
        (&["serve", "polygate.toml"], "unexpected argument 'polygate.toml'"),
        (&["check"], "--config <FILE>"),
        (&["replay", "--to", "tcp://127.0.0.1:1"], "<CONVERSATION>..."),
        (&["replay", "x", "--to", "127.0.0.1:1"], "expected a gateway as tcp://host:port, found \"127.0.0.1:1\""),
        (&["completions", "tcsh"], "[possible values: bash, elvish, fish, powershell, zsh]"),
        (
            &["man", "nope"],
            "polygate: expected one of the commands serve, check, demo, replay, guest, handler, tap, completions, man, help",
        ),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments).await;
        assert_eq!((output.code, &*output.stdout), (Some(2), ""), "{arguments:?}");
        assert!(output.stderr.contains(expected), "{arguments:?}: {}", output.stderr);
    }
}

/// Each shell's script knows each command.
#[tokio::test]
async fn completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&["completions", shell]).await;
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{shell}");
        for command in commands() {
            assert!(output.stdout.contains(&command), "{shell} does not know {command}");
        }
    }
}

/// The page of the program names every command, and each command has a page with its options and example.
#[tokio::test]
async fn man_pages() {
    let output = run(&["man"]).await;
    assert_eq!((output.code, &*output.stderr), (Some(0), ""));
    assert!(output.stdout.contains(".TH polygate 1"), "{}", output.stdout);
    for command in commands() {
        assert!(output.stdout.contains(&format!("polygate\\-{command}(1)")), "{command}");
        let page = run(&["man", &command]).await;
        assert_eq!((page.code, &*page.stderr), (Some(0), ""));
        assert!(page.stdout.contains(&format!(".TH polygate-{command} 1")), "{}", page.stdout);
        assert!(page.stdout.contains("\nExample") && page.stdout.contains("\\-\\-log\\-format"), "{}", page.stdout);
    }
}

/// What cannot be written ends with a reason, and not with a panic.
#[tokio::test]
async fn nowhere_to_write() {
    let output = run_into("/dev/full", &["completions", "bash"]).await;
    let reported = "polygate: cannot write the completions: no space left on device\n";
    assert_eq!((output.code, &*output.stderr), (Some(1), reported));
    let output = run_into("/dev/full", &["man"]).await;
    let reported = "polygate: cannot write the man page: no space left on device\n";
    assert_eq!((output.code, &*output.stderr), (Some(1), reported));
}
