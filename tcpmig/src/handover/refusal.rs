//! Why a target does not take a connection.

use std::fmt;

use serde::{Serialize, Serializer};

/// What kind of reason it is, for the program that gave the connection away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[non_exhaustive]
pub enum Code {
    /// The target has as much as it takes at a time. Another one, or the same one later, may take the connection.
    Full,
    /// The target's policy does not allow it from this source.
    Policy,
    /// The target cannot honour a socket option of the connection.
    Option,
    /// Nothing at the target knows the kind or version of the session on the connection.
    Session,
    /// The image cannot be read, or lacks what a connection needs.
    Image,
    /// Anything else, and what a target says that is newer or older than this.
    #[default]
    Other,
}

/// Why a target did not take a connection: what kind of reason, and the words of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// The kind.
    pub code: Code,
    /// The words, for a person to read.
    pub reason: String,
}

impl Code {
    pub(super) const ALL: [Self; 6] = [
        Self::Full,
        Self::Policy,
        Self::Option,
        Self::Session,
        Self::Image,
        Self::Other,
    ];

    /// Its word on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Policy => "policy",
            Self::Option => "option",
            Self::Session => "session",
            Self::Image => "image",
            Self::Other => "other",
        }
    }

    /// The one with this word. Targets of later versions may have more of them.
    pub(crate) fn of(word: &str) -> Self {
        let known = Self::ALL.into_iter().find(|code| code.word() == word);
        known.unwrap_or_default()
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Refusal {
    /// A refusal of this kind, in these words.
    #[must_use]
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { code, reason }
    }

    /// The same of no kind that has a code.
    #[must_use]
    pub fn other(reason: impl Into<String>) -> Self {
        Self::new(Code::Other, reason)
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::other(reason)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}
