//! This version of a server, between the last one and the next.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tcpmig::handover::{Code as RefusalCode, Refusal};
use tcpmig::session::{Arrival, Departed, Parts, Way};
use tcpmig::upgrade::{Arrivals, Next, Predecessor, Successor, UpgradeError};
use tcpmig_format::Layer;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::border::{Code, Done, Failure, answer, enter};
use crate::flow::flow_of;
use crate::layer::LayerStruct;
use crate::sessions::{
    About, EventStruct, Inbox, Item, Live, Queue, SessionStruct, layers_of, take_out,
};
use crate::sized::{self, descriptor, given};

/// How soon it is noticed that the next version has ended.
const LOOKED_FOR: Duration = Duration::from_millis(100);

/// `struct tcpmig_upgrade`.
pub struct UpgradeHandle {
    path: PathBuf,
    inbox: Inbox,
    /// The old version, until this one is ready.
    successor: Option<Successor>,
    had_older: bool,
    /// What the next version gets.
    listeners: Vec<(String, OwnedFd)>,
    is_ready: bool,
    next: Arc<Mutex<Option<Next>>>,
    live: Live,
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        let code = match &error {
            UpgradeError::OtherUser { .. } => Code::Permission,
            UpgradeError::Version(_) => Code::Unsupported,
            UpgradeError::Gone | UpgradeError::Silent(_) => Code::Unreachable,
            _ => Code::System,
        };
        Self::of(code, &error)
    }
}

/// Its steps are complete or not begun, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the caller asked whether a session may come, and waits for the answer: this is called on a thread of its own.
fn ask(layers: &[Layer], id: u64, queue: &Queue) -> Result<(), Refusal> {
    let taken_out = take_out(layers.to_vec());
    let (layers, _) = taken_out.map_err(|why| Refusal::new(RefusalCode::Session, why))?;
    let (answer, answered) = oneshot::channel();
    queue.push(Item::Offer {
        id,
        about: About {
            service: String::new(),
            flow: None,
            from: String::new(),
            layers,
        },
        answer,
    });
    match answered.blocking_recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(Refusal::new(RefusalCode::Session, why)),
        Err(_) => Err(Refusal::other("the new version ends")),
    }
}

fn arrived(arrival: Arrival, queue: &Queue) {
    let Arrival {
        socket,
        flow,
        mut unwritten,
        layers,
        ..
    } = arrival;
    // INVARIANT: [`ask`] refuses layers that cannot be taken apart.
    let Ok((layers, buffers)) = take_out(layers) else {
        return;
    };
    unwritten.extend_from_slice(&buffers.unsent);
    queue.push(Item::Arrived {
        // Which of the offers it was is not said.
        id: 0,
        about: About {
            service: String::new(),
            flow: Some(flow),
            from: String::new(),
            layers,
        },
        socket,
        unwritten,
        buffers,
    });
}

/// Takes in what the old version gives.
async fn take_in(mut arrivals: Arrivals, queue: Arc<Queue>) {
    while let Some(arrival) = arrivals.next().await {
        arrived(arrival, &queue);
    }
    queue.push(Item::Complete);
}

/// Waits for one next version after another.
async fn wait_for_next(
    mut predecessor: Predecessor,
    queue: Arc<Queue>,
    chosen: Arc<Mutex<Option<Next>>>,
) {
    loop {
        let next = predecessor.next().await;
        *lock(&chosen) = Some(next.clone());
        queue.push(Item::Successor {
            process: next.process(),
        });
        while !next.is_gone() {
            // It was told that nothing else comes.
            if lock(&chosen).is_none() {
                return;
            }
            sleep(LOOKED_FOR).await;
        }
        if lock(&chosen).take().is_some() {
            queue.push(Item::SuccessorGone);
        }
    }
}

impl UpgradeHandle {
    fn begin(path: PathBuf) -> Done<Self> {
        let (inbox, live) = (Inbox::new()?, Live::start("tcpmig-upgrade")?);
        let (queue, offers) = (Arc::clone(&inbox.queue), AtomicU64::new(0));
        let check = move |layers: &[Layer]| {
            let id = offers.fetch_add(1, Ordering::Relaxed) + 1;
            ask(layers, id, &queue)
        };
        let to = path.clone();
        let successor = live.wait_for(async move { Successor::connect(to, check).await })??;
        Ok(Self {
            path,
            inbox,
            had_older: successor.is_some(),
            successor,
            listeners: Vec::new(),
            is_ready: false,
            next: Arc::default(),
            live,
        })
    }

    fn ready(&mut self) -> Done {
        if self.is_ready {
            return Err(Failure::invalid("it is ready already"));
        }
        let path = self.path.clone();
        // The older one hears of this first: from then on it gives what it has.
        let arrivals = match self.successor.take() {
            Some(successor) => Some(
                self.live
                    .wait_for(async move { successor.ready().await })??,
            ),
            None => None,
        };
        self.is_ready = true;
        if let Some(arrivals) = arrivals {
            self.live
                .spawn(take_in(arrivals, Arc::clone(&self.inbox.queue)));
        }
        let listeners = std::mem::take(&mut self.listeners);
        let bind = async move {
            let mut predecessor = Predecessor::bind(path)?;
            for (name, listener) in &listeners {
                predecessor = predecessor.listener(name, listener)?;
            }
            Ok::<_, UpgradeError>(predecessor)
        };
        let predecessor = self.live.wait_for(bind)??;
        let (queue, next) = (Arc::clone(&self.inbox.queue), Arc::clone(&self.next));
        self.live.spawn(wait_for_next(predecessor, queue, next));
        Ok(())
    }

    fn next(&self) -> Done<Next> {
        let nobody = || Failure::new(Code::Unreachable, "there is no next version to give it to");
        lock(&self.next).clone().ok_or_else(nobody)
    }

    fn give(&self, next: Next, parts: Parts, id: u64) {
        let queue = Arc::clone(&self.inbox.queue);
        self.live.spawn(async move {
            let mut departed = next.depart(parts, &()).await;
            let item = loop {
                departed = match departed {
                    Departed::Moved(()) => break Item::Moved { id },
                    Departed::Kept { parts, cause } => {
                        break Item::Kept {
                            id,
                            socket: parts.socket,
                            code: "other".to_owned(),
                            reason: cause.to_string(),
                        };
                    }
                    Departed::Lost(reason) => break Item::Lost { id, reason },
                    Departed::InDoubt(doubt) => doubt.await,
                };
            };
            queue.push(item);
        });
    }

    fn finish(&self) -> Done {
        let next = self.next()?;
        self.live.wait_for(async move { next.finish().await })??;
        *lock(&self.next) = None;
        Ok(())
    }
}

exported! {
    /// `tcpmig_upgrade_begin`.
    fn tcpmig_upgrade_begin(
        path: *const c_char,
        upgrade: Option<&mut MaybeUninit<Option<Box<UpgradeHandle>>>>,
        had_older: Option<&mut MaybeUninit<c_int>>,
    ) -> c_int {
        enter(|| {
            let (upgrade, had_older) = (given(upgrade, "upgrade")?, given(had_older, "had_older")?);
            // SAFETY: a string, as the header says.
            let path = unsafe { sized::text(path, "path") }?;
            let handle = UpgradeHandle::begin(PathBuf::from(path))?;
            had_older.write(handle.had_older.into());
            upgrade.write(Some(Box::new(handle)));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_upgrade_free`.
    fn tcpmig_upgrade_free(upgrade: Option<&mut Option<Box<UpgradeHandle>>>) {
        answer((), || drop(upgrade.and_then(Option::take)));
    }
}

exported! {
    /// `tcpmig_upgrade_fd`.
    fn tcpmig_upgrade_fd(upgrade: Option<&UpgradeHandle>) -> c_int {
        answer(-1, || upgrade.map_or(-1, |upgrade| upgrade.inbox.queue.descriptor()))
    }
}

exported! {
    /// `tcpmig_upgrade_listener`.
    fn tcpmig_upgrade_listener(
        upgrade: Option<&mut UpgradeHandle>,
        name: *const c_char,
        fd: Option<&mut MaybeUninit<c_int>>,
    ) -> c_int {
        enter(|| {
            let (upgrade, fd) = (given(upgrade, "upgrade")?, given(fd, "fd")?);
            // SAFETY: a string, as the header says.
            let name = unsafe { sized::text(name, "name") }?;
            let older = upgrade.successor.as_mut();
            let found = older.and_then(|older| older.descriptor(name));
            let none = || Failure::invalid(format_args!("the old version has no listener {name:?}"));
            fd.write(found.ok_or_else(none)?.into_raw_fd());
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_upgrade_pass`.
    fn tcpmig_upgrade_pass(
        upgrade: Option<&mut UpgradeHandle>,
        name: *const c_char,
        fd: c_int,
    ) -> c_int {
        enter(|| {
            let upgrade = given(upgrade, "upgrade")?;
            // SAFETY: a string, as the header says.
            let name = unsafe { sized::text(name, "name") }?;
            if upgrade.is_ready {
                return Err(Failure::invalid("it is ready already"));
            }
            // SAFETY: the caller closes it after the call, if at all.
            let fd = unsafe { descriptor(fd) }?;
            let copy = fd.try_clone_to_owned().map_err(Failure::call("dup"))?;
            upgrade.listeners.push((name.to_owned(), copy));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_upgrade_ready`.
    fn tcpmig_upgrade_ready(upgrade: Option<&mut UpgradeHandle>) -> c_int {
        enter(|| given(upgrade, "upgrade")?.ready())
    }
}

exported! {
    /// `tcpmig_upgrade_give`.
    fn tcpmig_upgrade_give(
        upgrade: Option<&mut UpgradeHandle>,
        fd: c_int,
        session: *const SessionStruct,
        id: u64,
    ) -> c_int {
        enter(|| {
            let upgrade = given(upgrade, "upgrade")?;
            // SAFETY: it is as long as it says.
            let layers = unsafe { layers_of(session) }?;
            let next = upgrade.next()?;
            // SAFETY: it is the caller's until it is given below.
            let fd = unsafe { descriptor(fd) }?;
            flow_of(fd)?;
            // SAFETY: the caller gives it.
            let socket = unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) };
            upgrade.give(next, Parts { socket, layers }, id);
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_upgrade_finish`.
    fn tcpmig_upgrade_finish(upgrade: Option<&mut UpgradeHandle>) -> c_int {
        enter(|| given(upgrade, "upgrade")?.finish())
    }
}

exported! {
    /// `tcpmig_upgrade_next_event`.
    fn tcpmig_upgrade_next_event(
        upgrade: Option<&mut UpgradeHandle>,
        event: *mut EventStruct,
    ) -> c_int {
        enter(|| {
            let upgrade = given(upgrade, "upgrade")?;
            // SAFETY: it is as long as it says.
            unsafe { upgrade.inbox.next(event) }
        })
    }
}

exported! {
    /// `tcpmig_upgrade_layer`.
    fn tcpmig_upgrade_layer(
        upgrade: Option<&UpgradeHandle>,
        index: usize,
        layer: *mut LayerStruct,
    ) -> c_int {
        enter(|| {
            let upgrade = given(upgrade, "upgrade")?;
            // SAFETY: it is as long as it says.
            unsafe { upgrade.inbox.layer(index, layer) }
        })
    }
}

exported! {
    /// `tcpmig_upgrade_take`.
    fn tcpmig_upgrade_take(upgrade: Option<&mut UpgradeHandle>, offer: u64) -> c_int {
        enter(|| given(upgrade, "upgrade")?.inbox.answer(offer, Ok(())))
    }
}

exported! {
    /// `tcpmig_upgrade_refuse`.
    fn tcpmig_upgrade_refuse(
        upgrade: Option<&mut UpgradeHandle>,
        offer: u64,
        reason: *const c_char,
    ) -> c_int {
        enter(|| {
            let upgrade = given(upgrade, "upgrade")?;
            // SAFETY: a string, as the header says.
            let reason = unsafe { sized::text(reason, "reason") }?;
            upgrade.inbox.answer(offer, Err(reason.to_owned()))
        })
    }
}
