//! The calls into libnftnl for which its safe wrapper has no function.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::nftnl_sys as sys;
use nftnl::set::Set;
use nftnl::{MsgType, NlMsg, Rule};

/// The value of an expression's attribute.
#[derive(Debug, Clone)]
pub(super) enum Value {
    U16(u16),
    U32(u32),
    U64(u64),
    Str(CString),
}

/// An expression that nftnl cannot make: its name and the attributes of libnftnl's `NFTNL_EXPR_*`.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub(super) name: &'static CStr,
    pub(super) attributes: Vec<(u32, Value)>,
}

/// Attribute numbers of libnftnl are small; its setters take them as u16.
fn number(attribute: u32) -> u16 {
    u16::try_from(attribute).unwrap_or(u16::MAX)
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string, which the function only reads.
        let expr = unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) };
        // As nftnl does: an allocation that small fails only when nothing is left.
        let Some(expr) = NonNull::new(expr) else {
            std::process::abort()
        };
        for (attribute, value) in &self.attributes {
            match value {
                Value::U16(value) => {
                    // SAFETY: `expr` was just allocated and nobody else has it.
                    unsafe { sys::nftnl_expr_set_u16(expr.as_ptr(), number(*attribute), *value) };
                }
                Value::U32(value) => {
                    // SAFETY: as above.
                    unsafe { sys::nftnl_expr_set_u32(expr.as_ptr(), number(*attribute), *value) };
                }
                Value::U64(value) => {
                    // SAFETY: as above.
                    unsafe { sys::nftnl_expr_set_u64(expr.as_ptr(), number(*attribute), *value) };
                }
                Value::Str(value) => {
                    // SAFETY: as above; the function copies the C string.
                    unsafe {
                        sys::nftnl_expr_set_str(expr.as_ptr(), number(*attribute), value.as_ptr());
                    };
                }
            }
        }
        expr
    }
}

/// Sets a number of a set, `NFTNL_SET_*`.
pub(super) fn set_u32<K>(set: &mut Set<'_, K>, attribute: u32, value: u32) {
    // SAFETY: `set` owns the object, and the exclusive borrow keeps others away.
    unsafe { sys::nftnl_set_set_u32(set.as_ptr().as_ptr(), number(attribute), value) };
}

/// Sets bytes of a set, `NFTNL_SET_*`.
pub(super) fn set_bytes<K>(set: &mut Set<'_, K>, attribute: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(0);
    // SAFETY: as for `set_u32`; the function copies the bytes, whose number is given.
    unsafe {
        sys::nftnl_set_set_data(
            set.as_ptr().as_ptr(),
            number(attribute),
            value.as_ptr().cast(),
            length,
        );
    };
}

/// The bytes of a message.
pub(super) fn encode(message: &impl NlMsg, kind: MsgType) -> Vec<u8> {
    let mut buffer = vec![0u8; nftnl::nft_nlmsg_maxsize() as usize];
    // SAFETY: the buffer has the size that the trait asks for.
    unsafe { message.write(buffer.as_mut_ptr().cast(), 0, kind) };
    let length = buffer
        .first_chunk()
        .map_or(0, |length| u32::from_ne_bytes(*length));
    buffer.truncate(length as usize);
    buffer
}
