//! What the end-to-end tests in `tests/e2e` stand on. They drive the built `brig` as a person would, and look at the
//! host from outside.
//!
//! | module | what it is for |
//! |---|---|
//! | [`suite`] | runs the tests; says which are skipped here, and why |
//! | [`machine`] | what the machine under the tests offers |
//! | [`brig`] | a brig with directories of its own, and its commands |
//! | [`store`] | the images, unpacked once and shared by all tests |
//! | [`registry`] | a registry on a loopback port, and a wire before it that counts |
//! | [`server`] | a running server, shared by the tests that only talk to it |
//! | [`archive`] | image archives, good and damaged, made for a test |
//! | [`host`] | commands on a host that lacks something: `/dev/kvm`, rights, space |
//! | [`http`] | a client that does no more than a test tells it |
//! | [`pty`] | a terminal that a test types on and looks at |
//! | [`smaps`] | what a process has in memory |
//! | [`leftovers`] | what of a brig is still on the host |

pub mod archive;
pub mod brig;
pub mod host;
pub mod http;
pub mod leftovers;
pub mod machine;
pub mod pty;
pub mod registry;
pub mod server;
pub mod smaps;
pub mod store;
pub mod suite;
