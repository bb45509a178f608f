//! What the fuzz targets have in common: an allocator that counts.

/// Runs `work` and returns the bytes that it had allocated at most at one time.
pub fn peak(work: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(work).bytes_max
}
