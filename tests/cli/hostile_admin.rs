//! The admin port as an operator and as another user of the machine sees it: tokens, and what `check` says of them.

use std::path::Path;

use crate::program::{Setup, run, run_in};

/// The command line finds the generated token: through the configuration, or in the default data directory.
#[tokio::test]
async fn the_command_line_finds_the_generated_token() {
    let setup = Setup::guest("counter", "").admin("");
    let config = setup.write();
    let serving = setup.served().await;
    let admin = format!("http://{}", serving.admin());
    let dir = Path::new(&config).parent().unwrap();

    let listed = run(&["handler", "list", "-c", &config, "--admin", &admin]).await;
    assert_eq!((listed.code, &*listed.stderr), (Some(0), ""));
    let none = run_in(dir, &["handler", "list", "--admin", &admin]).await;
    assert_eq!(none.code, Some(1), "{none:?}");
    assert!(none.stderr.contains("requires another token; set it with --config, --token-file"), "{none:?}");

    // The default data directory, relative to the working directory.
    std::os::unix::fs::symlink(dir.join("data"), dir.join("polygate-data")).unwrap();
    let listed = run_in(dir, &["handler", "list", "--admin", &admin]).await;
    assert_eq!((listed.code, &*listed.stderr), (Some(0), ""));
    let tapped = run_in(dir, &["tap", "--conn", "0000000000000007", "--admin", &admin]).await;
    assert_eq!(tapped.stderr, "polygate: no connection has the id 0000000000000007\n");
    assert_eq!(serving.stop().await.0, Some(0));
}

/// The configuration names the address too, and keys of other tables need not be readable.
#[tokio::test]
async fn the_configuration_names_the_port() {
    let setup = Setup::new("[admin]\nbind = \"127.0.0.1:1\"\ntoken = \"a-token-of-the-test\"\n[auth]\nusers = 1\n");
    let output = run(&["handler", "list", "-c", &setup.write()]).await;
    assert_eq!(output.stderr, "polygate: cannot reach the admin port at 127.0.0.1:1: connection refused\n");
    let output = run(&["handler", "list", "-c", &Setup::new("").write()]).await;
    assert!(output.stderr.ends_with("has no [admin] table, so its gateway has no admin port\n"), "{output:?}");
    let output = run(&["handler", "list", "-c", &Setup::new("[admin]\nbind = 1\n").write()]).await;
    assert!(output.stderr.contains("admin.bind"), "{output:?}");
}

/// Beyond loopback a token is mandatory, and `check` says that it crosses the network in clear.
#[tokio::test]
async fn beyond_loopback() {
    for (token, valid) in [("", true), ("token = \"a-token-of-the-test\"", true), ("token = \"none\"", false)] {
        let setup = Setup::new(&format!("[admin]\nbind = \"0.0.0.0:9180\"\n{token}\n"));
        let output = run(&["check", "-c", &setup.write()]).await;
        assert_eq!(output.code, Some(if valid { 0 } else { 1 }), "{output:?}");
        let expected = if valid { "admin.bind: not a loopback address: the token" } else { "so a token is required" };
        assert!(format!("{}{}", output.stdout, output.stderr).contains(expected), "{output:?}");
    }
    for bind in ["127.0.0.1:9180", "[::1]:9180"] {
        let setup = Setup::new(&format!("[admin]\nbind = {bind:?}\ntoken = \"none\"\n"));
        let output = run(&["check", "-c", &setup.write()]).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(!output.stdout.contains("admin.bind: "), "{output:?}");
    }
}
