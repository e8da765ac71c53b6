//! images/welcome
fn main() {}
