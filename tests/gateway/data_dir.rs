//! A data directory that is full, read-only, or open to other users.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use polygate::testing::gateway::StartError;

use crate::harness::{GatewayUnderTest, Setup};

/// A start writes nothing that is there already, and goes on when it cannot write; the compiled code is used from
/// memory. Where the test may mount file systems, one without space and one that is read-only; elsewhere, a directory
/// that cannot be written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_needs_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let Some(mounted) = Mounted::tmpfs(&data, "size=12k,mode=700") else { return };
    // Full from the first start on.
    let filler = std::fs::write(data.join("filler"), vec![0; 64 << 10]);
    assert!(filler.is_err(), "the file system has space left");
    answers(start(&data).await.unwrap()).await;
    drop(mounted);

    let mounted = Mounted::tmpfs(&data, "size=64m,mode=700").unwrap();
    answers(start(&data).await.unwrap()).await;
    // Nothing differs at the second start.
    let index = data.join("versions/h/index.json");
    let written = std::fs::metadata(&index).unwrap().modified().unwrap();
    mounted.remount("ro");
    answers(start(&data).await.unwrap()).await;
    assert_eq!(std::fs::metadata(&index).unwrap().modified().unwrap(), written);
    drop(mounted);

    let mounted = Mounted::tmpfs(&data, "size=64m,mode=700").unwrap();
    mounted.remount("ro");
    answers(start(&data).await.unwrap()).await;
    drop(mounted);
}

/// The index is written only when it differs.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_index_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    start(&data).await.unwrap().stop().await;
    let index = data.join("versions/h/index.json");
    let written = std::fs::metadata(&index).unwrap().modified().unwrap();
    answers(start(&data).await.unwrap()).await;
    assert_eq!(std::fs::metadata(&index).unwrap().modified().unwrap(), written);
}

/// A directory in which other users could replace machine code is refused, and so is one below such a directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_open_to_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (above, data) = (dir.path().join("above"), dir.path().join("above/data"));
    std::fs::create_dir_all(&data).unwrap();
    for (open, closed) in [(&data, &above), (&above, &data)] {
        std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = start(&data).await.err().unwrap();
        assert!(matches!(error, StartError::DataDir(_)), "{error}");
        assert!(error.to_string().contains("that other users cannot write to"), "{error}");
        assert!(error.to_string().ends_with("came mode 777"), "{error}");
    }
}

async fn start(data: &Path) -> Result<GatewayUnderTest, StartError> {
    let key = format!("data_dir = {data:?}");
    Setup::guest("echo").handler("settings = { mode = \"raw\" }").data_dir(&key).admin("").try_start().await
}

/// Serves a device, and stops.
async fn answers(gateway: GatewayUnderTest) {
    let mut device = gateway.connect().await;
    device.send("12345").await;
    device.expect("12345").await;
    drop(device);
    gateway.stop().await;
}

/// A mounted file system, unmounted on drop.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// None where the test may not mount.
    fn tmpfs(at: &'a Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(at))
    }

    fn remount(&self, option: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{option}")]).arg(self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Lazily: the last gateway may still hold a file.
        assert!(Command::new("umount").arg("-l").arg(self.0).status().unwrap().success());
    }
}
