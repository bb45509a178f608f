//! Where a call from C enters and leaves.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
#[cfg(feature = "connection")]
use tcpmig::capture::CaptureError;
#[cfg(feature = "connection")]
use tcpmig::restore::RestoreError;
#[cfg(feature = "connection")]
use tcpmig_format::{DecodeError, EncodeError};
#[cfg(feature = "connection")]
use tcpmig_lock::LockError;

/// `enum tcpmig_code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the header says what each means")]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Invalid = 1,
    NotMovable = 2,
    Permission = 3,
    Unsupported = 4,
    Locked = 5,
    NotHeld = 6,
    MovedOn = 7,
    Reset = 8,
    Image = 9,
    Option = 10,
    Occupied = 11,
    System = 12,
    Some = 13,
    Internal = 14,
    Unreachable = 15,
    Refused = 16,
}

impl Code {
    /// All of them, with their names in C.
    pub const NAMES: [(Self, &'static CStr); 17] = [
        (Self::Ok, c"TCPMIG_OK"),
        (Self::Invalid, c"TCPMIG_INVALID"),
        (Self::NotMovable, c"TCPMIG_NOT_MOVABLE"),
        (Self::Permission, c"TCPMIG_PERMISSION"),
        (Self::Unsupported, c"TCPMIG_UNSUPPORTED"),
        (Self::Locked, c"TCPMIG_LOCKED"),
        (Self::NotHeld, c"TCPMIG_NOT_HELD"),
        (Self::MovedOn, c"TCPMIG_MOVED_ON"),
        (Self::Reset, c"TCPMIG_RESET"),
        (Self::Image, c"TCPMIG_IMAGE"),
        (Self::Option, c"TCPMIG_OPTION"),
        (Self::Occupied, c"TCPMIG_OCCUPIED"),
        (Self::System, c"TCPMIG_SYSTEM"),
        (Self::Some, c"TCPMIG_SOME"),
        (Self::Internal, c"TCPMIG_INTERNAL"),
        (Self::Unreachable, c"TCPMIG_UNREACHABLE"),
        (Self::Refused, c"TCPMIG_REFUSED"),
    ];
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    errno: c_int,
    message: String,
}

pub(crate) type Done<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, message: impl Display) -> Self {
        Self {
            code,
            errno: 0,
            message: message.to_string(),
        }
    }

    pub(crate) fn invalid(message: impl Display) -> Self {
        Self::new(Code::Invalid, message)
    }

    pub(crate) fn of(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self {
            errno: errno_in(error),
            ..Self::new(code, error)
        }
    }

    /// For the error of a call on a descriptor.
    pub(crate) fn call(call: &str) -> impl Fn(io::Error) -> Self {
        move |error| Self {
            code: Code::System,
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("{call}: {error}"),
        }
    }
}

/// The error number of the call that is at the bottom of it; 0 if there is none.
fn errno_in(error: &(dyn Error + 'static)) -> c_int {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<tcpmig_sys::Error>()
            && let Some(errno) = error.errno()
        {
            return errno;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error().unwrap_or(0);
        }
        next = error.source();
    }
    0
}

fn socket_code(error: &tcpmig_sys::Error) -> Code {
    match error {
        tcpmig_sys::Error::NotMigratable(_) => Code::NotMovable,
        tcpmig_sys::Error::NoPermission { .. } => Code::Permission,
        tcpmig_sys::Error::Unsupported { .. } => Code::Unsupported,
        tcpmig_sys::Error::Occupied { .. } => Code::Occupied,
        _ if error.errno() == Some(libc::EBADF) => Code::Invalid,
        _ => Code::System,
    }
}

#[cfg(feature = "connection")]
fn lock_code(error: &LockError) -> Code {
    match error {
        LockError::NoPermission { .. } => Code::Permission,
        LockError::AlreadyLocked(_) => Code::Locked,
        LockError::NotHeld(_) => Code::NotHeld,
        LockError::Duplicate(_)
        | LockError::LeaseZero
        | LockError::NoLocker(_)
        | LockError::NoDevice(_)
        | LockError::HopFamily { .. } => Code::Invalid,
        LockError::NoNftables { .. }
        | LockError::Unsupported { .. }
        | LockError::NoProgram { .. }
        | LockError::CannotUnplug { .. } => Code::Unsupported,
        _ => Code::System,
    }
}

impl From<tcpmig_sys::Error> for Failure {
    fn from(error: tcpmig_sys::Error) -> Self {
        Self::of(socket_code(&error), &error)
    }
}

#[cfg(feature = "connection")]
impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        Self::of(lock_code(&error), &error)
    }
}

#[cfg(feature = "connection")]
impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        let code = match &error {
            _ if error.is_not_migratable() => Code::NotMovable,
            CaptureError::Socket(error) => socket_code(error),
            // A connection of a host to itself has addresses that it shares with nobody else, and one without addresses none.
            CaptureError::Flow(_) => Code::NotMovable,
            CaptureError::Lock(error) | CaptureError::Conntrack(error) => lock_code(error),
            CaptureError::Reset => Code::Reset,
            CaptureError::MovedOn => Code::MovedOn,
            _ => Code::System,
        };
        Self::of(code, &error)
    }
}

#[cfg(feature = "connection")]
impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let code = match &error {
            RestoreError::Layer(_)
            | RestoreError::Listener
            | RestoreError::Image(_)
            | RestoreError::InjectMark
            | RestoreError::State(_) => Code::Image,
            RestoreError::Reset => Code::Reset,
            RestoreError::MovedOn => Code::MovedOn,
            RestoreError::Lock(error) => lock_code(error),
            RestoreError::Option(_) => Code::Option,
            RestoreError::Socket(error) => socket_code(error),
            _ => Code::System,
        };
        Self::of(code, &error)
    }
}

#[cfg(feature = "connection")]
impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::of(Code::Image, &error)
    }
}

#[cfg(feature = "connection")]
impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::of(Code::Invalid, &error)
    }
}

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
    static ERRNO: Cell<c_int> = const { Cell::new(0) };
    static MESSAGES: RefCell<Vec<CString>> = const { RefCell::new(Vec::new()) };
}

fn text(message: String) -> CString {
    // A NUL would end the text in C: what is behind it is left out here as well.
    CString::new(message).unwrap_or_else(|error| {
        let end = error.nul_position();
        let mut bytes = error.into_vec();
        bytes.truncate(end);
        CString::new(bytes).unwrap_or_default()
    })
}

/// Runs a call from C: what it fails with becomes a code and a message of this thread, and no panic leaves it.
pub(crate) fn enter(work: impl FnOnce() -> Done) -> c_int {
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)));
    match done {
        Ok(()) => Code::Ok as c_int,
        Err(failure) => {
            // A thread that is ending may have none of these left.
            let _ = ERRNO.try_with(|errno| errno.set(failure.errno));
            let _ = MESSAGE.try_with(|message| message.replace(text(failure.message)));
            failure.code as c_int
        }
    }
}

/// Like [`enter`], for calls that answer with something else than a code.
pub(crate) fn answer<T>(otherwise: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(otherwise)
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    let said = said.unwrap_or("no message");
    Failure::new(
        Code::Internal,
        format_args!("a defect of libtcpmig: {said}"),
    )
}

/// Notes what became of each of many, and what to answer.
pub(crate) fn settle_many<T>(
    results: Vec<Done<T>>,
    mut settle: impl FnMut(usize, Code, Option<T>),
) -> Done {
    let mut messages = Vec::with_capacity(results.len());
    let mut failed = 0;
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => {
                messages.push(CString::default());
                settle(index, Code::Ok, Some(value));
            }
            Err(failure) => {
                failed += 1;
                messages.push(text(failure.message));
                settle(index, failure.code, None);
            }
        }
    }
    let count = messages.len();
    let _ = MESSAGES.try_with(|noted| noted.replace(messages));
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Code::Some,
        format_args!("{failed} of {count} failed"),
    ))
}

/// Keeps signals from the threads that are started meanwhile: handlers of the program run on its own threads.
pub(crate) fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    struct Mask(SigSet);
    impl Drop for Mask {
        fn drop(&mut self) {
            // It was this thread's before.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.0), None);
        }
    }
    let mut before = SigSet::empty();
    // It fails for unknown operations only.
    let blocked = pthread_sigmask(
        SigmaskHow::SIG_BLOCK,
        Some(&SigSet::all()),
        Some(&mut before),
    );
    let _mask = blocked.is_ok().then_some(Mask(before));
    work()
}

/// A function that C calls, whose pointers are as the header says.
macro_rules! exported {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// Pointers are as `tcpmig.h` says, and no other thread uses these handles meanwhile.
        // SAFETY: no other crate of the program has names that begin with tcpmig_.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? $body
    };
}

exported! {
    /// `tcpmig_version`.
    fn tcpmig_version() -> *const c_char {
        const VERSION: &CStr = {
            let bytes = concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes();
            match CStr::from_bytes_with_nul(bytes) {
                Ok(text) => text,
                Err(_) => panic!("a version has no NUL"),
            }
        };
        VERSION.as_ptr()
    }
}

exported! {
    /// `tcpmig_last_error`.
    fn tcpmig_last_error() -> *const c_char {
        let pointer = MESSAGE.try_with(|message| message.borrow().as_ptr());
        pointer.unwrap_or(c"".as_ptr())
    }
}

exported! {
    /// `tcpmig_last_errno`.
    fn tcpmig_last_errno() -> c_int {
        ERRNO.try_with(Cell::get).unwrap_or(0)
    }
}

exported! {
    /// `tcpmig_last_error_of`.
    fn tcpmig_last_error_of(index: usize) -> *const c_char {
        let pointer = MESSAGES.try_with(|messages| messages.borrow().get(index).map(|text| text.as_ptr()));
        pointer.ok().flatten().unwrap_or(c"".as_ptr())
    }
}

exported! {
    /// `tcpmig_code_name`.
    fn tcpmig_code_name(code: c_int) -> *const c_char {
        let named = Code::NAMES.iter().find(|(known, _)| *known as c_int == code);
        named.map_or(c"unknown", |(_, name)| *name).as_ptr()
    }
}
