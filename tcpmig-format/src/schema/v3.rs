//! What version 3 changed: an image is of one subject, and what runs on it are layers.

use serde::{Deserialize, Serialize};

use super::critical::{Critical, Parts};
use super::layers::Layers;
use super::{v1, v2};

#[derive(Serialize, Deserialize)]
pub(super) struct Image<'a> {
    #[serde(borrow)]
    pub(super) critical: Critical<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) taken: Option<u64>,
    #[serde(borrow)]
    pub(super) subject: Subject<'a>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) layers: Option<Layers<'a>>,
}

/// Exactly one of them; a reader may meet any number. What is large is boxed: decoding would move it
/// once for each structure around it.
#[derive(Serialize, Deserialize)]
pub(super) struct Subject<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) connection: Option<Connection<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) listener: Option<Box<v1::Listen<'a>>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Connection<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<v1::Ip<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) tcp: Option<Box<v1::Tcp<'a>>>,
}

impl Image<'_> {
    /// The parts that `critical` can name, and whether they are there.
    pub(super) fn parts(&self) -> Parts {
        let connection = self.subject.connection.as_ref();
        let tcp = connection.and_then(|connection| connection.tcp.as_ref());
        [
            ("ip", connection.is_some_and(|c| c.ip.is_some())),
            ("tcp", tcp.is_some()),
            (
                "tcp.pending_error",
                tcp.is_some_and(|tcp| tcp.pending_error.is_some()),
            ),
            ("listener", self.subject.listener.is_some()),
            ("layers", self.layers.is_some()),
        ]
    }
}

/// The upgrade from version 2. Its names of critical parts are checked before.
impl<'a> From<v2::Image<'a>> for Image<'a> {
    fn from(old: v2::Image<'a>) -> Self {
        // One that says nothing at all is of a connection.
        let connection =
            (old.listen.is_none() || old.ip.is_some() || old.tcp.is_some()).then(|| {
                let (ip, tcp) = (old.ip, old.tcp.map(Box::new));
                Connection { ip, tcp }
            });
        Self {
            critical: old
                .critical
                .renamed([("app", "layers"), ("listen", "listener")]),
            taken: old.taken,
            subject: Subject {
                connection,
                listener: old.listen.map(Box::new),
            },
            layers: old.app.map(|app| Layers(vec![app])),
        }
    }
}

/// What a writer of version 2 would have written: of the layers it has room for the lowest.
#[cfg(any(test, feature = "arbitrary"))]
impl<'a> From<Image<'a>> for v2::Image<'a> {
    fn from(new: Image<'a>) -> Self {
        let Connection { ip, tcp } = new.subject.connection.unwrap_or(Connection {
            ip: None,
            tcp: None,
        });
        let layers = new.layers.map_or_else(Vec::new, |Layers(layers)| layers);
        Self {
            critical: new
                .critical
                .renamed([("layers", "app"), ("listener", "listen")]),
            taken: new.taken,
            ip,
            tcp: tcp.map(|tcp| *tcp),
            app: layers.into_iter().next(),
            listen: new.subject.listener.map(|listener| *listener),
        }
    }
}
