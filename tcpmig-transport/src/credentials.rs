//! Who this host is and whom it believes, as it is at the moment, and the connections that rest on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use quinn::crypto::rustls::QuicServerConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;

use crate::cause::{self, certificate_error};
use crate::error::TransportError;
use crate::identity::Identity;
use crate::limits::Role;
use crate::link::{Link, chain};
use crate::tls::{self, Connector};
use crate::trust::{Trust, dns_name};

/// They can be replaced while the endpoint works.
#[derive(Debug)]
pub(crate) struct Credentials {
    current: Mutex<Arc<Current>>,
    /// All that are open. Weak: a connection closes when nobody uses it any more.
    links: Mutex<Vec<Weak<Link>>>,
}

/// One set of them.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) connector: Connector,
    clients: Arc<dyn ClientCertVerifier>,
    trust: Trust,
}

impl Current {
    /// And by what the socket accepts.
    pub(crate) fn new(
        identity: &Identity,
        trust: &Trust,
    ) -> Result<(Self, Arc<QuicServerConfig>), TransportError> {
        trust.check_names()?;
        let clients = tls::clients(trust)?;
        let accepting = tls::accepting(identity, Arc::clone(&clients))?;
        let current = Self {
            connector: Connector::new(identity, trust)?,
            clients,
            trust: trust.clone(),
        };
        Ok((current, accepting))
    }

    /// The name by which the host at the other end of an accepted connection may connect.
    pub(crate) fn authorise(&self, connection: &quinn::Connection) -> Result<String, Vec<String>> {
        match chain(connection).first() {
            Some(certificate) => self.trust.authorise(certificate),
            None => Err(Vec::new()),
        }
    }

    /// Whether a connection that was made by other credentials could be made by these, now.
    fn stands(&self, link: &Link) -> Result<(), TransportError> {
        let (peer, now) = (link.address, UnixTime::now());
        let not_allowed = |names| TransportError::NotAllowed { peer, names };
        let chain = link.chain();
        let Some((certificate, others)) = chain.split_first() else {
            return Err(not_allowed(Vec::new()));
        };
        let verified = match link.role {
            Role::Connecting => {
                let verifier = self.connector.verifier();
                let name = dns_name(&link.name)?;
                let verified = verifier.verify_server_cert(certificate, others, &name, &[], now);
                verified.map(drop)
            }
            Role::Accepting => {
                let verified = self.clients.verify_client_cert(certificate, others, now);
                verified.map(drop)
            }
        };
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => certificate_error(error, peer),
            other => TransportError::UntrustedCertificate {
                peer,
                reason: other.to_string(),
            },
        })?;
        // By this name others know it, so another one that would be allowed does not help.
        if link.role == Role::Accepting && !self.trust.admits(certificate, &link.name) {
            return Err(not_allowed(vec![link.name.clone()]));
        }
        Ok(())
    }
}

impl Credentials {
    pub(crate) fn new(current: Current) -> Self {
        Self {
            current: Mutex::new(Arc::new(current)),
            links: Mutex::default(),
        }
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        Arc::clone(&lock(&self.current))
    }

    /// Keeps an eye on a connection that was made by these credentials. No more than so many may be open with it.
    ///
    /// # Errors
    /// It is closed: there are too many, or other credentials that do not allow it have come meanwhile.
    pub(crate) fn watch(
        &self,
        link: Link,
        by: &Arc<Current>,
        limit: usize,
    ) -> Result<Arc<Link>, TransportError> {
        let link = Arc::new(link);
        let mut links = lock(&self.links);
        links.retain(|link| link.strong_count() > 0);
        // Counting takes a look at each of them.
        if links.len() >= limit && open(&links) >= limit {
            let reason = b"it has as many connections as it allows";
            link.connection.close(cause::NOT_ALLOWED, reason);
            let peer = link.address;
            return Err(TransportError::Full { peer, limit });
        }
        links.push(Arc::downgrade(&link));
        drop(links);
        // `replace` puts the new ones in place before it looks at the connections: one of the two sees this one.
        let current = self.current();
        if !Arc::ptr_eq(&current, by) {
            current
                .stands(&link)
                .inspect_err(|error| close(&link, error))?;
        }
        Ok(link)
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        open(&lock(&self.links))
    }

    /// Puts others in place, and closes the connections that they do not allow.
    pub(crate) fn replace(&self, current: Current) {
        let current = Arc::new(current);
        *lock(&self.current) = Arc::clone(&current);
        let links: Vec<_> = lock(&self.links).iter().filter_map(Weak::upgrade).collect();
        for link in links {
            if let Err(error) = current.stands(&link) {
                tracing::warn!(name = link.name, address = %link.address, "no longer trusted: {error}");
                close(&link, &error);
            }
        }
    }
}

fn open(links: &[Weak<Link>]) -> usize {
    let open = |link: &&Weak<Link>| link.upgrade().is_some_and(|link| link.is_open());
    links.iter().filter(open).count()
}

fn close(link: &Link, error: &TransportError) {
    let reason = format!("it is no longer trusted here: {error}");
    link.connection.close(cause::NOT_ALLOWED, reason.as_bytes());
}

/// A panic elsewhere left the value as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
