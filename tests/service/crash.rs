//! The daemon is killed in the middle of everything.
