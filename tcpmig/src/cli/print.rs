//! What is printed, and what happens if it cannot be.
//!
//! Nothing that was done is undone, or looks as if it had failed, because nobody reads the report: the command goes on without
//! printing. Its end says so, unless the reader has closed the pipe on purpose.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why standard output took no more.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Writes to standard output.
pub(crate) fn to_output(text: Arguments<'_>, end: &str) {
    if FAILED.get().is_some() {
        return;
    }
    let mut out = io::stdout().lock();
    let written = out
        .write_fmt(text)
        .and_then(|()| out.write_all(end.as_bytes()))
        .and_then(|()| out.flush());
    if let Err(error) = written {
        let _ = FAILED.set(error);
    }
}

/// Writes a line to standard error; if that fails nobody would hear of it.
pub(crate) fn to_error(text: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Why something could not be printed; nothing if the reader had enough.
pub(crate) fn failed() -> Option<&'static io::Error> {
    FAILED
        .get()
        .filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// A line on standard output.
macro_rules! say {
    () => { $crate::cli::print::to_output(::std::format_args!(""), "\n") };
    ($($text:tt)*) => { $crate::cli::print::to_output(::std::format_args!($($text)*), "\n") };
}

/// A line on standard error.
macro_rules! tell {
    ($($text:tt)*) => { $crate::cli::print::to_error(::std::format_args!($($text)*)) };
}

pub(crate) use {say, tell};
