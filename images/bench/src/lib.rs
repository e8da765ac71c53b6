//! The micro-benchmarks of `brig compare`: one static program, the same bytes in a microVM, in a container and as a plain
//! process. It prints a line of JSON for each row.
//!
//! | module | what it is for |
//! |---|---|
//! | [`options`] | the command line |
//! | [`sampler`] | how often something is done, for how long, and which of it is warm-up |
//! | [`report`] | the lines that are printed |
//! | [`rows`] | what is measured, by name |
//! | [`server`] | the other end of the network rows |
//! | [`hold`] | memory that is taken and given back |
//! | [`look`] | what a process sees of its machine |
//! | [`sys`] | the system calls that `std` does not have |

pub mod hold;
pub mod look;
pub mod options;
pub mod report;
pub mod rows;
pub mod sampler;
pub mod server;
pub mod sys;
