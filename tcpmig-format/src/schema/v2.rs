//! What version 2 changed: an image says when it was taken.

use serde::{Deserialize, Serialize};

use super::critical::{Critical, Parts};
use super::v1;

#[derive(Serialize, Deserialize)]
pub(super) struct Image<'a> {
    #[serde(borrow)]
    pub(super) critical: Critical<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) taken: Option<u64>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<v1::Ip<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) tcp: Option<v1::Tcp<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<v1::App<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) listen: Option<v1::Listen<'a>>,
}

impl Image<'_> {
    /// The parts that `critical` can name, which are those of version 1, and whether they are there.
    pub(super) fn parts(&self) -> Parts {
        let pending_error = self.tcp.as_ref().and_then(|tcp| tcp.pending_error.as_ref());
        [
            ("ip", self.ip.is_some()),
            ("tcp", self.tcp.is_some()),
            ("tcp.pending_error", pending_error.is_some()),
            ("app", self.app.is_some()),
            ("listen", self.listen.is_some()),
        ]
    }
}

/// The upgrade from version 1.
impl<'a> From<v1::Image<'a>> for Image<'a> {
    fn from(old: v1::Image<'a>) -> Self {
        Self {
            critical: old.critical,
            taken: None,
            ip: old.ip,
            tcp: old.tcp,
            app: old.app,
            listen: old.listen,
        }
    }
}

/// What a writer of version 1 would have written.
#[cfg(any(test, feature = "arbitrary"))]
impl<'a> From<Image<'a>> for v1::Image<'a> {
    fn from(new: Image<'a>) -> Self {
        Self {
            critical: new.critical,
            ip: new.ip,
            tcp: new.tcp,
            app: new.app,
            listen: new.listen,
        }
    }
}
