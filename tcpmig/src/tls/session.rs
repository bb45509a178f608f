//! A TLS session of a server, without its socket.

use std::io::{self, BufRead, Write};
use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};
use rustls::{ServerConfig, ServerConnection, SupportedCipherSuite};
use tcpmig_format::Octets;

use super::graft::Switches;
use super::keys::{Begun, Direction, Keys, follow, key_and_iv};
use super::layer::State;
use super::{rebuild, records};
use crate::handover::Refusal;

/// A TLS session of a server, without its socket.
pub(super) struct Session {
    tls: ServerConnection,
    keys: Arc<Keys>,
    /// `None` of one that began here.
    switches: Option<Arc<Switches>>,
    /// Read from TCP. rustls is given whole records, so that it never holds a part of one, which it does not give back.
    received: BytesMut,
    /// What was decrypted elsewhere.
    unread: Octets,
    /// Records that were made elsewhere.
    unwritten: Octets,
    client_closed: bool,
    server_closed: bool,
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
    #[error("the cipher suite does not give its keys out")]
    Suite,
    #[error("the secrets of the TLS session do not lead to the keys in use")]
    Secrets,
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Session {
    /// One that begins with a handshake.
    pub(super) fn begin(config: &ServerConfig) -> Result<Self, rustls::Error> {
        let mut config = config.clone();
        let keys = Keys::new(Begun::default(), config.key_log);
        config.key_log = keys.clone();
        config.enable_secret_extraction = true;
        // What came early may come twice, and rustls does not give it back.
        config.max_early_data_size = 0;
        let tls = ServerConnection::new(Arc::new(config))?;
        Ok(Self {
            tls,
            keys,
            switches: None,
            received: BytesMut::new(),
            unread: Octets::new(),
            unwritten: Octets::new(),
            client_closed: false,
            server_closed: false,
            failed: false,
        })
    }

    /// One that goes on. `unwritten` goes to the client before what it carries.
    pub(super) fn resume(
        state: State,
        mut unwritten: Octets,
        config: &ServerConfig,
    ) -> Result<Self, Refusal> {
        let (tls, begun, switches) = rebuild::rebuild(&state, config)?;
        unwritten.extend_from_slice(&state.unwritten);
        Ok(Self {
            tls,
            keys: Keys::new(begun, config.key_log.clone()),
            switches: Some(switches),
            received: BytesMut::from(&state.received[..]),
            unread: state.unread,
            unwritten,
            client_closed: state.client_closed,
            server_closed: state.server_closed,
            failed: false,
        })
    }

    pub(super) fn tls(&self) -> &ServerConnection {
        &self.tls
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    #[cfg(test)]
    pub(super) fn refresh(&mut self) {
        self.tls.refresh_traffic_keys().unwrap();
    }

    /// Where to put what is read from TCP.
    pub(super) fn received(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// Gives out plaintext that the client has sent, as much as fits, and says how much: nothing at its end. `None` before more
    /// is received.
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
            if self.client_closed {
                // Where it was said is not here.
                return Ok(Some(0));
            }
            if !self.take_record()? {
                return Ok(None);
            }
        }
    }

    /// Gives rustls the next record; whether there was one.
    pub(super) fn take_record(&mut self) -> io::Result<bool> {
        let Some(len) = records::first(&self.received) else {
            return Ok(false);
        };
        let mut record = &self.received[..len];
        // rustls takes nothing behind a close_notify.
        while !record.is_empty() && self.tls.read_tls(&mut record)? > 0 {}
        self.received.advance(len);
        match self.tls.process_new_packets() {
            Ok(state) => {
                self.client_closed |= state.peer_has_closed();
                Ok(true)
            }
            Err(error) => {
                self.failed = true;
                Err(invalid(error))
            }
        }
    }

    /// Takes plaintext for the client, and says how much of it: nothing if too much waits for TCP.
    pub(super) fn write(&mut self, plaintext: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if self.server_closed {
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
        if !self.server_closed {
            self.server_closed = true;
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

    /// Takes the session apart.
    pub(super) fn into_state(mut self) -> Result<State, NotCarried> {
        if self.tls.is_handshaking() {
            return Err(NotCarried::Handshake);
        }
        if self.failed {
            return Err(NotCarried::Failed);
        }
        let suite = self.tls.negotiated_cipher_suite();
        let suite = suite.ok_or(NotCarried::Handshake)?;
        let mut state = State {
            version: suite.version().version.into(),
            suite: suite.suite().into(),
            server_name: self.tls.server_name().map(str::to_owned),
            alpn: self.tls.alpn_protocol().map(<[u8]>::to_vec),
            certificates: self.certificates(),
            received: self.received[..].into(),
            client_closed: self.client_closed,
            server_closed: self.server_closed,
            ..State::default()
        };
        state.unread = std::mem::take(&mut self.unread);
        while let Ok(chunk @ [_, ..]) = self.tls.reader().fill_buf() {
            let len = chunk.len();
            state.unread.extend_from_slice(chunk);
            self.tls.reader().consume(len);
        }
        // The answer to a key update, for which the key has changed already, waits for the next write.
        if !self.server_closed {
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
        let used = self.tls.dangerous_extract_secrets()?;
        let (sent, received) = (key_and_iv(&used.tx.1), key_and_iv(&used.rx.1));
        let (sent, received) = (
            sent.ok_or(NotCarried::Suite)?,
            received.ok_or(NotCarried::Suite)?,
        );
        match suite {
            SupportedCipherSuite::Tls13(suite) => {
                let server = follow(suite, &begun.server, sent.0, used.tx.0);
                let client = follow(suite, &begun.client, received.0, used.rx.0);
                state.server = server.ok_or(NotCarried::Secrets)?;
                state.client = client.ok_or(NotCarried::Secrets)?;
                state.exporter = begun.exporter;
            }
            SupportedCipherSuite::Tls12(_) => {
                state.server = direction12(&begun.server, sent, used.tx.0);
                state.client = direction12(&begun.client, received, used.rx.0);
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
