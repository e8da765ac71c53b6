//! brig-agent: PID 1 of a guest. It runs the image's process through the launcher, moves the bytes of its streams and
//! of TCP connections, reports how it ended, and unpacks images.
//!
//! One thread, one epoll loop ([`agent`]):
//!
//! | what wakes it | file |
//! |---|---|
//! | a message of the supervisor's | [`control`] |
//! | a new stream, and bytes on those that exist | [`streams`], [`relay`] |
//! | the end of a child | [`reaper`] |
//!
//! What a message asks for is done by [`sandbox`] (the sandbox and its first process, and more of them), [`process`], [`prepared`] (what of that can be done in
//! advance), [`wake`] (what a restore has to change), [`priority`], [`disks`], [`unpack`] and the [`heap`] that it takes; `tools` is what the agent does in a sandbox itself.
//! [`machine`], `switches` and [`vsock`] are what only a guest has; everything else works on descriptors that it is given, so
//! that a test can play the supervisor over socket pairs.

pub mod agent;
pub mod control;
pub mod disks;
pub mod error;
pub mod heap;
pub mod machine;
mod pack;
pub mod prepared;
pub mod priority;
pub mod process;
pub mod reactor;
pub mod reaper;
pub mod relay;
pub mod sandbox;
pub mod streams;
mod switches;
mod tools;
pub mod unpack;
pub mod vsock;
pub mod wake;
