//! Pointers of C, and structs that say how long they are.

use std::ffi::{CStr, c_char, c_int};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::BorrowedFd;
use std::ptr;

use crate::border::{Done, Failure};

/// A struct of C that begins with its size, and is nothing but numbers and pointers: any bytes are one.
///
/// # Safety
///
/// `repr(C)`, the first field is the size as `usize`, and zeros are valid in every field, as are any other bytes.
pub(crate) unsafe trait Sized_: Copy {
    /// How long its first version was.
    const OLDEST: usize;
}

/// The struct that is there, as long as it says; fields that it does not have are zero.
///
/// # Safety
///
/// The pointer is null, or that of a struct that is as long as it says.
pub(crate) unsafe fn read<T: Sized_>(given: *const T, what: &str) -> Done<T> {
    // SAFETY: as the caller's.
    let size = unsafe { size_of_given(given, what) }?;
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have that many bytes.
    unsafe { ptr::copy_nonoverlapping(given.cast::<u8>(), value.as_mut_ptr().cast(), known) };
    // SAFETY: any bytes are such a struct.
    let value = unsafe { value.assume_init() };
    let more = given.cast::<u8>().wrapping_add(known);
    // SAFETY: the struct is as long as it says.
    let more = unsafe { std::slice::from_raw_parts(more, size - known) };
    if more.iter().any(|byte| *byte != 0) {
        return Err(Failure::invalid(format_args!(
            "{what} has fields that this version of the library does not know"
        )));
    }
    Ok(value)
}

/// Fills in the struct that is there, as far as it goes, and leaves its size as it is.
///
/// # Safety
///
/// As for [`read`], and it can be written to.
pub(crate) unsafe fn write<T: Sized_>(given: *mut T, value: &T, what: &str) -> Done {
    // SAFETY: as the caller's.
    let size = unsafe { size_of_given(given, what) }?;
    let known = size.min(size_of::<T>()) - size_of::<usize>();
    let from = ptr::from_ref(value)
        .cast::<u8>()
        .wrapping_add(size_of::<usize>());
    let to = given.cast::<u8>().wrapping_add(size_of::<usize>());
    // SAFETY: both have that many bytes behind their size.
    unsafe { ptr::copy_nonoverlapping(from, to, known) };
    Ok(())
}

/// How long the struct is that is there.
///
/// # Safety
///
/// As for [`read`].
pub(crate) unsafe fn size_of_given<T: Sized_>(given: *const T, what: &str) -> Done<usize> {
    present(given, what)?;
    // SAFETY: it begins with its size.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    if size < T::OLDEST {
        return Err(Failure::invalid(format_args!(
            "{what}: size is {size}, and has to be sizeof of the struct"
        )));
    }
    Ok(size)
}

fn present<T>(pointer: *const T, what: &str) -> Done {
    if pointer.is_null() {
        return Err(missing(what));
    }
    Ok(())
}

/// That an argument is NULL.
pub(crate) fn missing(what: &str) -> Failure {
    Failure::invalid(format_args!("{what} is NULL"))
}

/// What an argument points to.
pub(crate) fn given<T>(argument: Option<T>, what: &str) -> Done<T> {
    argument.ok_or_else(|| missing(what))
}

/// A string.
///
/// # Safety
///
/// The pointer is null or that of a string, which lives as long as the result is used.
pub(crate) unsafe fn text<'a>(string: *const c_char, what: &str) -> Done<&'a str> {
    present(string, what)?;
    // SAFETY: as the caller's.
    let string = unsafe { CStr::from_ptr(string) };
    let utf8 = string.to_str();
    utf8.map_err(|_| Failure::invalid(format_args!("{what} is not UTF-8")))
}

/// An array; without elements the pointer may be null.
///
/// # Safety
///
/// The pointer is null or that of so many elements, which live as long as the result is used.
pub(crate) unsafe fn slice<'a, T>(first: *const T, count: usize, what: &str) -> Done<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    present(first, what)?;
    fits::<T>(count, what)?;
    // SAFETY: as the caller's.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// An array to be filled in.
///
/// # Safety
///
/// As for [`slice`], and nothing else refers to the elements.
pub(crate) unsafe fn slice_mut<'a, T>(
    first: *mut T,
    count: usize,
    what: &str,
) -> Done<&'a mut [MaybeUninit<T>]> {
    if count == 0 {
        return Ok(&mut []);
    }
    present(first, what)?;
    fits::<T>(count, what)?;
    // SAFETY: as the caller's.
    Ok(unsafe { std::slice::from_raw_parts_mut(first.cast(), count) })
}

fn fits<T>(count: usize, what: &str) -> Done {
    let bytes = count.checked_mul(size_of::<T>());
    match bytes.and_then(|bytes| isize::try_from(bytes).ok()) {
        Some(_) => Ok(()),
        None => Err(Failure::invalid(format_args!(
            "{what}: {count} of them are too many"
        ))),
    }
}

/// A descriptor for a call that finds out whether it is open.
///
/// # Safety
///
/// As for [`descriptor`].
pub(crate) unsafe fn number<'a>(fd: c_int) -> Done<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(Failure::invalid(format_args!(
            "{fd} is not an open descriptor"
        )));
    }
    // SAFETY: as the caller's; a number that is not a descriptor is one that calls fail with.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A descriptor that is open now.
///
/// # Safety
///
/// Nobody closes it while the result is used.
pub(crate) unsafe fn descriptor<'a>(fd: c_int) -> Done<BorrowedFd<'a>> {
    // SAFETY: F_GETFD takes any number, and changes nothing.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Failure::invalid(format_args!(
            "{fd} is not an open descriptor"
        )));
    }
    // SAFETY: it is open, and nobody closes it.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
