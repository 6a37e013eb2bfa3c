//! Guests that are made for a test.

use std::path::PathBuf;

use tempfile::TempDir;
use wit_component::StringEncoding;

use crate::program::{Output, repository, run_in};

/// A folder with a guest and its files.
pub struct Workshop(TempDir);

impl Workshop {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The guest of tests/fixtures/guests/per_chunk.wat, with the names of its functions.
    pub fn per_chunk() -> (Self, String) {
        let workshop = Self::new();
        let text = std::fs::read_to_string(repository("tests/fixtures/guests/per_chunk.wat")).unwrap();
        let mut module = wat::parse_str(text).unwrap();
        let mut resolve = wit_parser::Resolve::default();
        let (package, _) = resolve.push_dir(repository("wit")).unwrap();
        let world = resolve.select_world(&[package], Some("connection-handler")).unwrap();
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
        let file = workshop.write("per_chunk.wasm", module);
        (workshop, file)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs the program in the folder.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        run_in(self.0.path(), arguments).await
    }

    /// The output without the name of the folder.
    pub fn without_folder(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}
