//! Gives the shared library its name.

/// Changes with every release that a program linked against an earlier one cannot use.
const ABI: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtcpmig.so.{ABI}");
}
