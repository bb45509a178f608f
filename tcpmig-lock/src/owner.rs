//! Who makes a lock.

/// The name of this process, as the kernel has it (`comm`), with nothing in it but letters, digits and `-_./:`.
pub(crate) fn name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let plain = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '/' | ':' => c,
        _ => '_',
    };
    name.trim_end().chars().take(15).map(plain).collect()
}
