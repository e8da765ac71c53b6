//! The end-to-end tests: what a person sees of brig, and what is on the host meanwhile and afterwards.

fn main() {}
