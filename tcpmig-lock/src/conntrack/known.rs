//! Entries for connections that come to this host.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::channel::{self, Channel};
use super::entry::{Entry, New, State, Tuple};
use super::{ConntrackError, Translation};
use crate::netlink::socket;

/// What connection tracking has to know of a connection that comes to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrival {
    /// Its addresses and ports, as its socket has them.
    pub flow: FourTuple,
    /// Its handshake is not over: this end sent a SYN that was not answered.
    pub opening: bool,
    /// The shift counts of the windows that this end and the peer advertise (RFC 7323), if both use them.
    pub window_scale: Option<(u8, u8)>,
    /// Whether both ends permitted selective acknowledgements (RFC 2018).
    pub sack: bool,
}

impl Arrival {
    /// An established connection without TCP options.
    #[must_use]
    pub fn new(flow: FourTuple) -> Self {
        Self {
            flow,
            opening: false,
            window_scale: None,
            sack: false,
        }
    }

    /// Which end sent the first SYN, as far as ports tell: a client's port is one that its system chose, and those are
    /// higher than the ports of services. If they do not tell, the peer did, as with a server.
    fn opened_by_peer(&self) -> bool {
        const FIRST_EPHEMERAL: u16 = 32768;
        let (local, remote) = (self.flow.local().port(), self.flow.remote().port());
        remote >= FIRST_EPHEMERAL || local <= remote
    }

    fn entry(&self, zone: u16, lives: Duration) -> New {
        let sent = Tuple::sent_by(&self.flow);
        let (original, scales) = match (self.opened_by_peer(), self.window_scale) {
            (true, scales) => (sent.reversed(), scales.map(|(own, peers)| [peers, own])),
            (false, scales) => (sent, scales.map(|(own, peers)| [own, peers])),
        };
        New {
            original,
            zone,
            scales,
            sack: self.sack,
            seconds: seconds(lives),
        }
    }
}

/// A connection that this host's connection tracking knows.
///
/// Dropping it removes the entries that were made for it, so that a connection which does not come leaves nothing; they
/// would also expire soon. [`Known::keep`] leaves them to the connection, whose first packet gives them the time that this
/// host gives to any.
#[derive(Debug)]
#[must_use = "dropping it makes the connection unknown again"]
pub struct Known {
    arrival: Arrival,
    lives: Duration,
    since: Instant,
    made: Vec<Made>,
    /// Where there is an entry, made or found.
    zones: Vec<u16>,
    /// The cookie of the network namespace, if the kernel tells it.
    namespace: Option<u64>,
}

#[derive(Debug)]
struct Made {
    sent: Tuple,
    zone: u16,
}

/// More zones than this are those of other networks on this host.
const ZONES: usize = 16;

/// An entry lives at least so long without a packet.
const AT_LEAST: Duration = Duration::from_secs(60);

impl Known {
    /// Makes connection tracking know a connection, as established, if this host has it: a packet filter that lets only
    /// such connections pass then lets it pass, in both directions, as does `nf_conntrack_tcp_loose=0`.
    ///
    /// What is left of an earlier connection with the same addresses and ports is removed; an entry that is established
    /// stays, and is the connection's. In both cases sequence numbers are no longer held against the windows that connection tracking saw,
    /// because it did not see this connection's. For one whose handshake is not over
    /// ([`Arrival::opening`]) remains are removed and nothing is made: the answer to its SYN makes it known.
    ///
    /// The entry lives for `lives` (a minute at least) if no packet comes. Packets that rules put into another zone than 0
    /// find it if this process has seen that zone and there are no more than 16; a new table of rules is seen
    /// within seconds.
    ///
    /// Takes some ten microseconds, and the first time in a network namespace a look through its whole table. The calling
    /// thread has to be in the network namespace of the connection; any `socket` of that one shows which it is.
    ///
    /// # Errors
    ///
    /// [`ConntrackError::Translates`] if an entry rewrites packets with these addresses here;
    /// [`ConntrackError::Full`] if the table is full, so that no packet of it would pass; [`ConntrackError::Call`].
    /// Nothing was made. Without `CAP_NET_ADMIN`, and on a kernel without `CONFIG_NF_CT_NETLINK`, nothing is
    /// made and that is not an error.
    pub fn make(
        socket: BorrowedFd<'_>,
        arrival: Arrival,
        lives: Duration,
    ) -> Result<Self, ConntrackError> {
        Self::make_in(socket::namespace_cookie(&socket), arrival, lives)
    }

    /// Like [`Known::make`], but in the network namespace with this cookie (`SO_NETNS_COOKIE`).
    ///
    /// # Errors
    ///
    /// Those of [`Known::make`].
    pub fn make_in(
        namespace: Option<u64>,
        arrival: Arrival,
        lives: Duration,
    ) -> Result<Self, ConntrackError> {
        let mut known = Self {
            arrival,
            lives: lives.max(AT_LEAST),
            since: Instant::now(),
            made: Vec::new(),
            zones: Vec::new(),
            namespace,
        };
        known.make_in_zones()?;
        Ok(known)
    }

    /// Makes it known as it was in the beginning, whatever packets it has seen since.
    ///
    /// # Errors
    ///
    /// Like [`Known::make`]; what was made before is removed.
    pub fn renew(&mut self) -> Result<(), ConntrackError> {
        self.remove();
        self.since = Instant::now();
        self.make_in_zones()
    }

    /// Like [`Known::renew`], if the entry may expire before its connection sends something, or was removed meanwhile
    /// with all others (`conntrack -F`, as firewalls do when they are loaded again): an older one that this process has found there a few
    /// milliseconds ago shows that this was not so.
    ///
    /// # Errors
    ///
    /// Those of [`Known::renew`].
    pub fn check(&mut self) -> Result<(), ConntrackError> {
        if self.since.elapsed() > self.lives / 2 || !self.is_there() {
            self.renew()?;
        }
        Ok(())
    }

    /// How long ago it was made.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    fn is_there(&self) -> bool {
        let since = self.since;
        let looked = channel::with_in(self.namespace, |channel| {
            if channel.has_kept_all_since(since) {
                return Ok(true);
            }
            for zone in &self.zones {
                if channel
                    .get(&Tuple::sent_by(&self.arrival.flow), *zone)?
                    .is_none()
                {
                    return Ok(false);
                }
            }
            if !self.zones.is_empty() {
                channel.kept(since);
            }
            Ok(true)
        });
        // What cannot be asked cannot be re-created either.
        looked.ok().flatten().unwrap_or(true)
    }

    /// Leaves the entries to the connection.
    pub fn keep(mut self) {
        self.made.clear();
    }

    fn make_in_zones(&mut self) -> Result<(), ConntrackError> {
        let Self {
            arrival,
            lives,
            made,
            zones: there,
            namespace,
            ..
        } = self;
        there.clear();
        let done = channel::with_in(*namespace, |channel| {
            let zones = channel.zones()?;
            let zones = if zones.len() > ZONES { &[] } else { &zones[..] };
            for &zone in std::iter::once(&0).chain(zones) {
                match make_in_zone(channel, arrival, zone, *lives) {
                    Ok(Entered::Made(one)) => {
                        there.push(zone);
                        made.push(one);
                    }
                    Ok(Entered::Found) => there.push(zone),
                    Ok(Entered::Nothing) => {}
                    Err(Failed::Translates(translation)) => return Ok(Some(translation)),
                    Err(Failed::Call(error)) => return Err(error),
                }
            }
            Ok(None)
        });
        let failed = match done {
            Ok(None | Some(None)) => return Ok(()),
            Ok(Some(Some(translation))) => ConntrackError::Translates(translation),
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => ConntrackError::Full,
            Err(source) => ConntrackError::Call {
                call: "netlink(IPCTNL_MSG_CT_NEW)",
                source,
            },
        };
        self.remove();
        Err(failed)
    }

    fn remove(&mut self) {
        if self.made.is_empty() {
            return;
        }
        let made = std::mem::take(&mut self.made);
        // What cannot be removed expires.
        let _ = channel::with_in(self.namespace, |channel| {
            for Made { sent, zone } in &made {
                // One that packets have made since is somebody else's.
                if let Some(entry) = channel.get(sent, *zone)?
                    && entry.liberal
                {
                    channel.delete(sent, *zone, entry.id)?;
                }
            }
            Ok(())
        });
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.remove();
    }
}

fn seconds(lives: Duration) -> u32 {
    u32::try_from(lives.as_secs()).unwrap_or(u32::MAX)
}

enum Failed {
    Call(io::Error),
    Translates(Box<Translation>),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Call(error)
    }
}

/// What there is in a zone.
enum Entered {
    Made(Made),
    Found,
    Nothing,
}

fn make_in_zone(
    channel: &mut Channel,
    arrival: &Arrival,
    zone: u16,
    lives: Duration,
) -> Result<Entered, Failed> {
    let sent = Tuple::sent_by(&arrival.flow);
    // Mostly there is none, which the kernel says as well. A packet can make an entry at any time: then that one is looked
    // at.
    for _ in 0..3 {
        if !arrival.opening {
            match channel.create(&arrival.entry(zone, lives)) {
                Ok(()) => return Ok(Entered::Made(Made { sent, zone })),
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(entry) = channel.get(&sent, zone)? {
            if is_in_use(&entry) {
                if let Some(translation) = Translation::of(&entry) {
                    // Its packets would be rewritten here, too; it is another connection, or comes from elsewhere.
                    return Err(Failed::Translates(Box::new(translation)));
                }
                if !arrival.opening {
                    // The entry may be that of packets which this host forwards until the connection lives here:
                    // it has to be there as before if the connection does not come.
                    channel.loosen(&entry, zone, seconds(lives))?;
                    return Ok(Entered::Found);
                }
            }
            channel.delete(&sent, zone, entry.id)?;
        }
        if arrival.opening {
            return Ok(Entered::Nothing);
        }
    }
    // Somebody else makes it known again and again.
    Ok(Entered::Nothing)
}

fn is_in_use(entry: &Entry) -> bool {
    entry.state == Some(State::ESTABLISHED)
}
