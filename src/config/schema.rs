//! Schema of the configuration file: every table with its keys, and of each key the type, the range, the default and the
//! meaning.
//!
//! The checks, the suggestions ("did you mean"), the reference in docs/configuration.md and the test of the sample all
//! read the schema; a key that is not in it is rejected. Each table is declared with [`section!`] in the file that also
//! reads it. A new key takes one line there, and one line where [`Table::get`](super::read::Table::get) reads it into
//! the options.

use super::value::{Form, PATH, ValueType, text};
use super::{adapter, admin, auth, broker, gateway, handler, listener};

/// A table and the keys it may have.
pub(super) struct Section {
    /// The key of the table in its parent.
    pub(super) key: &'static str,
    /// The table as errors and the reference name it.
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    pub(super) shape: Shape,
    pub(super) entries: &'static [&'static dyn Entry],
}

impl Section {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.entries.iter().map(|entry| entry.name())
    }
}

/// How often a table may stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Once,
    /// An array of tables.
    Rows,
    /// A table of tables, whose keys are names that the user chooses.
    Named,
}

/// A key with its value type and its meaning.
pub(super) struct Key<T: 'static, P> {
    pub(super) name: &'static str,
    pub(super) form: &'static dyn ValueType<T>,
    pub(super) presence: P,
    pub(super) about: &'static str,
}

/// What the absence of a key means.
pub(super) trait Presence<T>: Sync {
    /// What [`Table::get`](super::read::Table::get) returns.
    type Value;

    /// The value of a key; `None` where it is absent and required.
    fn value(&self, read: Option<T>) -> Option<Self::Value>;

    /// The default, for the reference.
    fn describe(&self, form: &dyn ValueType<T>) -> String;
}

/// The key is required.
pub(super) struct Required;

impl<T> Presence<T> for Required {
    type Value = T;

    fn value(&self, read: Option<T>) -> Option<T> {
        read
    }

    fn describe(&self, _: &dyn ValueType<T>) -> String {
        "required".to_owned()
    }
}

/// The value of an absent key.
pub(super) struct DefaultTo<T>(pub(super) fn() -> T);

impl<T> Presence<T> for DefaultTo<T> {
    type Value = T;

    fn value(&self, read: Option<T>) -> Option<T> {
        Some(read.unwrap_or_else(self.0))
    }

    fn describe(&self, form: &dyn ValueType<T>) -> String {
        format!("`{}`", form.show(&self.0()))
    }
}

/// The key has no default value; the words describe what happens without it.
pub(super) struct Optional(pub(super) &'static str);

impl<T> Presence<T> for Optional {
    type Value = Option<T>;

    fn value(&self, read: Option<T>) -> Option<Option<T>> {
        Some(read)
    }

    fn describe(&self, _: &dyn ValueType<T>) -> String {
        self.0.to_owned()
    }
}

/// Declares a table as the static `SECTION`, and each of its keys as a static [`Key`].
///
/// ```ignore
/// section! {
///     /// Text of the reference above the table.
///     "gateway", "[gateway]", Once;               // key in the parent, title, shape
///
///     /// Meaning in the reference.
///     NODE "node": String = text("a name such as \"gw-1\"", 1..=255), optional "the host name";
///     /// Meaning in the reference.
///     DRAIN_TIMEOUT "drain_timeout": Duration = duration(secs(0)..=secs(3600)), default secs(30);
///     &tls::SECTION;                              // a table in the table, or a key that several tables share
/// }
/// ```
///
/// A key is `required`, `optional "what happens without it"` or has a `default`. The order is that of the reference.
/// With `mod name;` in front, a module of this name has the statics; it sees the names of the module around it.
macro_rules! section {
    (mod $module:ident; $($section:tt)*) => {
        pub(in crate::config) mod $module {
            use super::*;

            $crate::config::schema::section! { $($section)* }
        }
    };
    (
        $(#[doc = $about:literal])*
        $key:literal, $title:literal, $shape:ident;
        $(
            $(&$($shared:ident)::+)?
            $(
                $(#[doc = $meaning:literal])+
                $id:ident $name:literal: $type:ty = $form:expr, $presence:ident $($argument:expr)?
            )?
            ;
        )*
    ) => {
        pub(in crate::config) static SECTION: $crate::config::schema::Section = $crate::config::schema::Section {
            key: $key,
            title: $title,
            about: concat!($($about),*),
            shape: $crate::config::schema::Shape::$shape,
            entries: &[$($(&$($shared)::+,)? $(&$id,)?)*],
        };
        $($(
            pub(in crate::config) static $id: $crate::config::schema::Key<$type, section!(@type $presence $type)> =
                $crate::config::schema::Key {
                    name: $name,
                    form: &$form,
                    presence: section!(@value $presence $($argument)?),
                    about: concat!($($meaning),+),
                };
        )?)*
    };
    (@type required $type:ty) => { $crate::config::schema::Required };
    (@type optional $type:ty) => { $crate::config::schema::Optional };
    (@type default $type:ty) => { $crate::config::schema::DefaultTo<$type> };
    (@value required) => { $crate::config::schema::Required };
    (@value optional $without:expr) => { $crate::config::schema::Optional($without) };
    (@value default $value:expr) => { $crate::config::schema::DefaultTo(|| $value) };
}
pub(super) use section;

/// A key as the reference shows it.
pub(super) trait Entry: Sync {
    fn name(&self) -> &'static str;

    /// The columns of its row: form, default, range, meaning.
    fn columns(&self) -> [String; 4];
}

impl<T, P: Presence<T>> Entry for Key<T, P> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn columns(&self) -> [String; 4] {
        let Form { name, range, .. } = self.form.form();
        let columns = [&name, &*self.presence.describe(self.form), &range, self.about.trim()];
        columns.map(str::to_owned)
    }
}

impl Entry for Section {
    fn name(&self) -> &'static str {
        self.key
    }

    fn columns(&self) -> [String; 4] {
        let form = match self.shape {
            Shape::Once => "table",
            Shape::Rows => "array of tables",
            Shape::Named => "table of tables",
        };
        [form.to_owned(), "absent".to_owned(), String::new(), format!("see `{}`", self.title)]
    }
}

// The file itself.
section! {
    mod root;
    "", "the file", Once;
    &gateway::SECTION;
    &adapter::SECTION;
    &admin::SECTION;
    &broker::SECTION;
    &auth::SECTION;
    &handler::SECTION;
    &listener::SECTION;
}

// The location of a secret that is not in the file.
section! {
    mod secret;
    /// Instead of a string, a secret may be a table with one of these keys. Secrets appear in no log and no error.
    "", "Secrets", Once;

    /// the environment variable with the secret
    ENV "env": String = text("the name of an environment variable", 1..=255), optional "this or `file`";
    /// the file with the secret; a line break at its end does not count
    FILE "file": String = PATH, optional "this or `env`";
}

/// All sections with keys of their own, in the order of the reference.
static SECTIONS: [&Section; 25] = [
    &gateway::SECTION,
    &adapter::SECTION,
    &adapter::tls::SECTION,
    &admin::SECTION,
    &broker::SECTION,
    &auth::SECTION,
    &auth::user::SECTION,
    &auth::rule::SECTION,
    &handler::wasm::SECTION,
    &handler::grpc::SECTION,
    &handler::grpc::tls::SECTION,
    &listener::SECTION,
    &listener::tls::SECTION,
    &listener::tls::certificate::SECTION,
    &listener::proxy::SECTION,
    &listener::framing::SECTION,
    &listener::framing::length::SECTION,
    &listener::framing::delimiter::SECTION,
    &listener::framing::fixed::SECTION,
    &listener::framing::line::SECTION,
    &listener::framing::escape::SECTION,
    &listener::framing::gap::SECTION,
    &secret::SECTION,
    &handler::wasm::isolation::SECTION,
    &handler::swap::SECTION,
];

/// All keys, as the tables of the reference in Markdown.
pub fn reference() -> String {
    let mut page = String::new();
    for section in SECTIONS {
        let heading = match section.title.starts_with('[') {
            true => format!("`{}`", section.title),
            false => section.title.to_owned(),
        };
        page += &format!(
            "## {heading}\n\n{}\n\n| key | form | default | range | meaning |\n| --- | --- | --- | --- | --- |\n",
            section.about.trim()
        );
        for entry in section.entries {
            let columns = entry.columns().map(|column| column.replace('|', "\\|"));
            page += &format!("| `{}` | {} |\n", entry.name(), columns.join(" | "));
        }
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys of one name in one table would hide each other.
    #[test]
    fn names_are_unique() {
        for section in SECTIONS {
            let mut names: Vec<_> = section.names().collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), section.entries.len(), "{}", section.title);
        }
    }

    /// The sample shows every key, commented out where its default is good.
    #[test]
    fn the_sample_shows_every_key() {
        let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/polygate.toml")).unwrap();
        for section in SECTIONS {
            for entry in section.entries {
                let name = entry.name();
                let shown = [format!("{name} = "), format!(".{name}]"), format!("[{name}"), format!("{name}.")];
                assert!(shown.iter().any(|shown| sample.contains(shown)), "{} of {}", name, section.title);
            }
        }
    }
}
