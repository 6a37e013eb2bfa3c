//! `polygate guest new`: writes a handler project that builds and passes its own test.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;

use super::Error;

/// The project template of one language (guests/templates).
#[derive(Debug)]
struct Template {
    language: &'static str,
    /// The next commands for the user.
    next: &'static [&'static str],
    files: &'static [File],
}

#[derive(Debug)]
struct File {
    path: &'static str,
    is_executable: bool,
    bytes: &'static [u8],
}

/// The templates are embedded: nothing has to be downloaded, and they fit the interface of this version.
const TEMPLATES: &[Template] = include!(concat!(env!("OUT_DIR"), "/guest_templates.rs"));

/// The placeholder of the project's name in a template.
const NAME: &str = "{{name}}";

/// Maximum length of a name: it becomes the name of a file, a package and a handler.
const NAME_BYTES_MAX: usize = 64;

/// Reserved names of compilers and package managers.
const RESERVED: [&str; 20] = [
    "abstract",
    "async",
    "await",
    "const",
    "core",
    "crate",
    "false",
    "final",
    "handler",
    "impl",
    "macro",
    "match",
    "polygate",
    "polygate-guest",
    "self",
    "std",
    "struct",
    "test",
    "true",
    "type",
];

/// Writes a new handler project
///
/// The project is a folder with the handler's name, which must not exist or be empty. It contains the handler, the
/// interface, a conversation as its test, and a README; it builds and passes its test.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  polygate guest new meter --lang rust")]
pub(crate) struct Args {
    /// The handler's name: lower-case letters, digits and "-"
    pub name: String,

    /// The language
    #[arg(long, value_parser = PossibleValuesParser::new(TEMPLATES.iter().map(|template| template.language)))]
    pub lang: String,
}

/// The project could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewError {
    /// The name is malformed.
    #[error(
        "expected a name of 1 to {NAME_BYTES_MAX} lower-case letters, digits and \"-\" that begins with a letter and does not \
         end with \"-\", found {0:?}"
    )]
    Name(String),
    /// The name is reserved.
    #[error("expected a name that no compiler keeps for itself, found {0:?}")]
    Reserved(String),
    /// There is no such template.
    #[error("expected one of the languages {there}, found {found:?}")]
    Language {
        /// The given language.
        found: String,
        /// The known languages.
        there: String,
    },
    /// The folder is not empty.
    #[error("expected {path} not to exist, or to be an empty folder; it has something in it", path = .0.display())]
    NotEmpty(PathBuf),
    /// A file or folder could not be written.
    #[error("cannot write {path}", path = .path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes the project into the current folder, and prints the next commands.
///
/// # Errors
///
/// [`NewError`]; nothing is written if the name, the language or the folder is refused.
pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result<ExitCode, Error> {
    let template = write_project(&args.name, &args.lang, Path::new(&args.name))?;
    writeln!(out, "{}: {} files. Next:\n", args.name, template.files.len())?;
    writeln!(out, "  cd {}", args.name)?;
    for line in template.next {
        writeln!(out, "  {}", line.replace(NAME, &args.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_project(name: &str, language: &str, folder: &Path) -> Result<&'static Template, NewError> {
    check_name(name)?;
    let template = TEMPLATES.iter().find(|template| template.language == language).ok_or_else(|| {
        let there = TEMPLATES.iter().map(|template| template.language).collect::<Vec<_>>().join(", ");
        NewError::Language { found: language.to_owned(), there }
    })?;
    check_empty(folder)?;
    for file in template.files {
        let path = folder.join(file.path);
        write_file(&path, file, name).map_err(|source| NewError::Write { path, source })?;
    }
    Ok(template)
}

fn check_name(name: &str) -> Result<(), NewError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.ends_with('-');
    if !fits {
        return Err(NewError::Name(name.to_owned()));
    }
    if RESERVED.contains(&name) { Err(NewError::Reserved(name.to_owned())) } else { Ok(()) }
}

fn check_empty(folder: &Path) -> Result<(), NewError> {
    match std::fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NewError::NotEmpty(folder.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NewError::Write { path: folder.to_owned(), source }),
    }
}

fn write_file(path: &Path, file: &File, name: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mode = if file.is_executable { 0o777 } else { 0o666 };
    let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    match std::str::from_utf8(file.bytes) {
        Ok(text) => open.write_all(text.replace(NAME, name).as_bytes()),
        Err(_) => open.write_all(file.bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Every template becomes a project with the interface and a test, and without placeholders.
    #[test]
    fn a_project_of_each_language() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!TEMPLATES.is_empty());
        for template in TEMPLATES {
            let folder = dir.path().join(template.language);
            write_project("meter-2", template.language, &folder).unwrap();
            let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
            assert!(!template.next.is_empty(), "{}", template.language);
            for line in template.next {
                let line = line.replace(NAME, "meter-2");
                assert!(
                    readme.lines().any(|read| read == line),
                    "{line:?} is not in the README of {}",
                    template.language
                );
            }
            assert!(folder.join("wit/handler.wit").is_file() && folder.join("README.md").is_file());
            assert!(!folder.join("template.toml").exists());
            let conversations = std::fs::read_dir(folder.join("conversations")).unwrap().count();
            assert!(conversations > 0, "{}", template.language);
            for file in template.files {
                let path = folder.join(file.path);
                let is_executable = std::fs::metadata(&path).unwrap().permissions().mode() & 0o100 != 0;
                assert_eq!(is_executable, file.is_executable, "{path:?}");
                let bytes = std::fs::read(&path).unwrap();
                assert!(!bytes.windows(NAME.len()).any(|window| window == NAME.as_bytes()), "{path:?}");
            }
        }
    }

    /// Existing files are not changed.
    #[test]
    fn a_folder_with_something_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), "").unwrap();
        let refused = write_project("meter", TEMPLATES[0].language, dir.path()).unwrap_err();
        assert!(matches!(refused, NewError::NotEmpty(_)), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn names() {
        for name in ["a", "meter-7", "x1"] {
            check_name(name).unwrap();
        }
        for name in ["", "7up", "Meter", "a_b", "a/b", "..", "a-", "-a", "é", &"a".repeat(65)] {
            assert!(matches!(check_name(name), Err(NewError::Name(_))), "{name:?}");
        }
        assert!(matches!(check_name("std"), Err(NewError::Reserved(_))));
    }
}
