//! TCP repair system calls as safe functions
