//! A TLS session without its socket.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use bytes::BufMut;
use rustls::pki_types::ServerName;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};
use tcpmig_format::SecretBytes;

use super::graft::Switches;
use super::keys::{Begun, Direction, Keys, follow, key_and_iv};
use super::layer::State;
use super::negotiated::Negotiated;
use super::rebuild::{self, Terms};
use super::records::{Batch, Cut, Small, Tap};
use super::side::Side;
use crate::handover::Refusal;

/// One end of a TLS session, without its socket.
pub(super) struct Session<C> {
    tls: C,
    /// What a client has asked for.
    server_name: Option<String>,
    keys: Arc<Keys>,
    /// `None` of one that began here.
    switches: Option<Arc<Switches>>,
    /// What rustls holds of a record that has not come to its end.
    cut: Cut,
    /// The last records that rustls got, as long as nothing came of them: a message that its sender has cut into several may have
    /// begun in them, and rustls does not give that back.
    silent: VecDeque<Small>,
    /// Read from TCP and not given to rustls yet.
    received: SecretBytes,
    /// What was decrypted elsewhere.
    unread: SecretBytes,
    /// Records that were made elsewhere.
    unwritten: SecretBytes,
    /// The other end has said `close_notify`.
    is_ended: bool,
    /// This end has.
    is_closed: bool,
    /// rustls gave the session up.
    failed: bool,
}

/// Why a session cannot be carried.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotCarried {
    #[error("the TLS handshake is not over")]
    Handshake,
    #[error("the TLS session has failed")]
    Failed,
    #[error("the cipher suite {0:?} of this provider of cryptography does not give its keys out")]
    Suite(CipherSuite),
    #[error("the secrets of the TLS session do not lead to the keys in use")]
    Secrets,
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// As many as a key update has bytes, and some that say nothing.
const MOST_SILENT: usize = 16;

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Session<ServerConnection> {
    /// One that begins with a handshake.
    pub(super) fn accept(config: &ServerConfig) -> Result<Self, rustls::Error> {
        let mut config = config.clone();
        let keys = Keys::new(Begun::default(), config.key_log);
        config.key_log = keys.clone();
        config.enable_secret_extraction = true;
        // What came early may come twice, and rustls does not give it back.
        config.max_early_data_size = 0;
        let tls = ServerConnection::new(Arc::new(config))?;
        Ok(Self::new(tls, keys))
    }
}

impl Session<ClientConnection> {
    /// One that begins with a handshake.
    pub(super) fn connect(
        config: &ClientConfig,
        server: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let mut config = config.clone();
        let keys = Keys::new(Begun::default(), config.key_log);
        config.key_log = keys.clone();
        config.enable_secret_extraction = true;
        config.enable_early_data = false;
        let name = match &server {
            ServerName::DnsName(name) => Some(name.as_ref().to_owned()),
            _ => None,
        };
        let tls = ClientConnection::new(Arc::new(config), server)?;
        Ok(Self {
            server_name: name,
            ..Self::new(tls, keys)
        })
    }
}

impl<C: Side> Session<C> {
    fn new(tls: C, keys: Arc<Keys>) -> Self {
        Self {
            tls,
            server_name: None,
            keys,
            switches: None,
            cut: Cut::default(),
            silent: VecDeque::new(),
            received: SecretBytes::new(),
            unread: SecretBytes::new(),
            unwritten: SecretBytes::new(),
            is_ended: false,
            is_closed: false,
            failed: false,
        }
    }

    /// One that goes on. `unwritten` goes to the other end before what it carries.
    pub(super) fn resume(
        state: State,
        mut unwritten: SecretBytes,
        terms: &Terms<'_>,
    ) -> Result<Self, Refusal> {
        let (tls, begun, switches) = rebuild::rebuild(&state, terms)?;
        unwritten.extend_from_slice(&state.unwritten);
        let (is_closed, is_ended) = C::own_first(state.client_closed, state.server_closed);
        Ok(Self {
            server_name: state.server_name,
            switches: Some(switches),
            received: state.received,
            unread: state.unread,
            unwritten,
            is_ended,
            is_closed,
            ..Self::new(tls, Keys::new(begun, terms.key_log.clone()))
        })
    }

    pub(super) fn tls(&self) -> &C {
        &self.tls
    }

    /// `None` before the handshake has come as far as that.
    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        Negotiated::of(&self.tls, self.server_name())
    }

    fn server_name(&self) -> Option<String> {
        let known = self.tls.server_name().map(str::to_owned);
        known.or_else(|| self.server_name.clone())
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    #[cfg(test)]
    pub(super) fn begun(&self) -> Begun {
        self.keys.begun()
    }

    #[cfg(test)]
    pub(super) fn refresh(&mut self) {
        self.tls.refresh_traffic_keys().unwrap();
    }

    /// Gives out plaintext that the other end has sent, as much as fits, and says how much: nothing at its end. `None` before
    /// more is received.
    pub(super) fn read(&mut self, into: &mut impl BufMut) -> io::Result<Option<usize>> {
        let most = into.remaining_mut();
        if !self.unread.is_empty() {
            let len = most.min(self.unread.len());
            into.put_slice(&self.unread.split_to(len));
            return Ok(Some(len));
        }
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok(chunk) => {
                    let len = most.min(chunk.len());
                    into.put_slice(&chunk[..len]);
                    reader.consume(len);
                    return Ok(Some(len));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.is_ended {
                // Where it was said is not here.
                return Ok(Some(0));
            }
            if self.received.is_empty() {
                return Ok(None);
            }
            let received = std::mem::take(&mut self.received);
            let mut rest = &received[..];
            let done = self.receive(&mut rest);
            // Behind what of it comes next.
            self.received.extend_from_slice(rest);
            done?;
        }
    }

    /// Lets rustls read, and says how much: nothing at the end. What was read elsewhere comes before that: [`Session::read`]
    /// has to be asked first.
    pub(super) fn receive(&mut self, from: &mut dyn Read) -> io::Result<usize> {
        // In a handshake nobody asks in between. The keys of TLS 1.2 do not change.
        let one_by_one = !self.tls.is_handshaking() && self.is_tls13();
        let mut tap = Tap::new(from, &mut self.cut, one_by_one);
        let len = self.tls.read_tls(&mut tap)?;
        let (batch, held) = (tap.batch, tap.held);
        if !held.is_empty() {
            // What was received elsewhere is behind what has just been read from it.
            let behind = std::mem::replace(&mut self.received, held.into());
            self.received.extend_from_slice(&behind);
        }
        match self.tls.process_new_packets() {
            Ok(state) => {
                let is_silent = state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed();
                self.is_ended |= state.peer_has_closed();
                self.note(&batch, is_silent);
                Ok(len)
            }
            Err(error) => {
                self.failed = true;
                Err(invalid(error))
            }
        }
    }

    /// Remembers what nothing came of.
    fn note(&mut self, batch: &Batch, is_silent: bool) {
        match batch {
            Batch::Part => {}
            Batch::Small(record) if is_silent => {
                if self.silent.len() == MOST_SILENT {
                    self.silent.pop_front();
                }
                self.silent.push_back(*record);
            }
            // It is in memory that nobody needs while the connection is at rest.
            Batch::Small(_) | Batch::Records => {
                if !self.silent.is_empty() {
                    self.silent = VecDeque::new();
                }
            }
        }
    }

    /// Takes plaintext for the other end, and says how much of it: nothing if too much waits for TCP.
    pub(super) fn write(&mut self, plaintext: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if self.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let switches = self.switches.as_ref();
        if switches.is_some_and(|switches| switches.take_worn()) {
            if self.is_tls13() {
                self.tls.refresh_traffic_keys().map_err(invalid)?;
            } else {
                self.close();
                return Err(io::Error::other("the keys of the TLS session are worn out"));
            }
        }
        self.tls.writer().write_vectored(plaintext)
    }

    fn is_tls13(&self) -> bool {
        let suite = self.tls.negotiated_cipher_suite();
        matches!(suite, Some(SupportedCipherSuite::Tls13(_)))
    }

    /// Says `close_notify`.
    pub(super) fn close(&mut self) {
        if !self.is_closed {
            self.is_closed = true;
            self.tls.send_close_notify();
        }
    }

    /// Whether records wait for TCP.
    pub(super) fn wants_write(&self) -> bool {
        !self.unwritten.is_empty() || self.tls.wants_write()
    }

    /// Writes records that wait for TCP, some of them.
    pub(super) fn write_records(&mut self, to: &mut dyn Write) -> io::Result<usize> {
        if self.unwritten.is_empty() {
            return self.tls.write_tls(to);
        }
        let written = to.write(&self.unwritten)?;
        self.unwritten.split_to(written);
        Ok(written)
    }

    /// Whether it can be taken apart.
    ///
    /// # Errors
    ///
    /// Why not; [`Session::into_state`] would end the session.
    pub(super) fn check(&self) -> Result<SupportedCipherSuite, NotCarried> {
        if self.tls.is_handshaking() {
            return Err(NotCarried::Handshake);
        }
        if self.failed {
            return Err(NotCarried::Failed);
        }
        let suite = self.tls.negotiated_cipher_suite();
        let suite = suite.ok_or(NotCarried::Handshake)?;
        if rebuild::gives_keys(suite) {
            Ok(suite)
        } else {
            Err(NotCarried::Suite(suite.suite()))
        }
    }

    /// Takes the session apart.
    pub(super) fn into_state(mut self) -> Result<State, NotCarried> {
        let suite = self.check()?;
        let (client_closed, server_closed) = C::own_first(self.is_closed, self.is_ended);
        let mut state = State {
            version: suite.version().version.into(),
            suite: suite.suite().into(),
            server_name: self.server_name(),
            alpn: self.tls.alpn_protocol().map(<[u8]>::to_vec),
            certificates: self.certificates(),
            client_closed,
            server_closed,
            ..State::default()
        };
        state.unread = std::mem::take(&mut self.unread);
        while let Ok(chunk @ [_, ..]) = self.tls.reader().fill_buf() {
            let len = chunk.len();
            state.unread.extend_from_slice(chunk);
            self.tls.reader().consume(len);
        }
        // The answer to a key update, for which the key has changed already, waits for the next write.
        if !self.is_closed {
            // An empty write does not fail.
            let _ = self.tls.writer().write(&[]);
        }
        state.unwritten = std::mem::take(&mut self.unwritten);
        while self.tls.wants_write() {
            let mut records = Vec::new();
            // A vector takes everything.
            if !matches!(self.tls.write_tls(&mut records), Ok(1..)) {
                break;
            }
            state.unwritten.extend_from_slice(&records);
        }
        let begun = self.keys.begun();
        let used = self.tls.extract()?;
        // Those since the key was changed: the target reads them again.
        let again = used.rx.0.min(self.silent.len() as u64);
        if !self.is_ended {
            let silent = self.silent.iter().rev().take(again as usize).rev();
            silent.for_each(|record| state.received.extend_from_slice(record.as_ref()));
            state.received.extend_from_slice(self.cut.bytes());
            state.received.extend_from_slice(&self.received);
        }
        let lacking = || NotCarried::Suite(suite.suite());
        let keys = |(count, secrets)| Some((key_and_iv(secrets)?, count));
        let own = keys((used.tx.0, &used.tx.1)).ok_or_else(lacking)?;
        let read = if self.is_ended { 0 } else { again };
        let other = keys((used.rx.0 - read, &used.rx.1)).ok_or_else(lacking)?;
        let (client, server) = C::own_first(own, other);
        match suite {
            SupportedCipherSuite::Tls13(suite) => {
                let client = follow(suite, &begun.client, client.0.0, client.1);
                let server = follow(suite, &begun.server, server.0.0, server.1);
                state.client = client.ok_or(NotCarried::Secrets)?;
                state.server = server.ok_or(NotCarried::Secrets)?;
                state.exporter = begun.exporter;
            }
            SupportedCipherSuite::Tls12(_) => {
                state.client = direction12(&begun.client, client.0, client.1);
                state.server = direction12(&begun.server, server.0, server.1);
            }
        }
        Ok(state)
    }

    fn certificates(&self) -> Vec<Vec<u8>> {
        let certificates = self.tls.peer_certificates().unwrap_or_default();
        certificates.iter().map(|der| der.to_vec()).collect()
    }
}

/// rustls derives the keys of TLS 1.2 again when it is asked for them, and of a session that was rebuilt gets those of
/// the handshake in memory. They do not change, so the first ones are the right ones.
fn direction12(begun: &Direction, (key, iv): (&[u8], &[u8]), count: u64) -> Direction {
    let secret = if begun.secret.is_empty() {
        [key, iv].concat().into()
    } else {
        begun.secret.clone()
    };
    Direction {
        secret,
        next: begun.next.wrapping_add(count),
    }
}
