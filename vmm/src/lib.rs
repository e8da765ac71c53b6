//! A minimal KVM hypervisor for one sandbox: the library of brig-vmm.
//!
//! | room | does |
//! |---|---|
//! | [`control`] | serves the supervisor's commands: the top of the process |
//! | [`config`] | checks a boot command, once |
//! | [`machine`] | builds a machine from it and runs it |
//! | [`memory`], [`layout`] | the guest's memory, and what is where in it |
//! | [`boot`] | the kernel, its tables, the first registers |
//! | [`kvm`] | the hypervisor interface of Linux |
//! | [`emulate`] | what a KVM without hardware virtualization lacks |
//! | [`devices`] | serial port, reset line, virtio devices |
//! | [`snapshot`] | the state file of a saved guest |
//! | [`pause`] | what brings vCPUs and device threads to a halt |
//! | [`prefetch`] | the pages that a start touches |
//! | [`event_loop`] | the threads that serve queues and streams |
//! | [`stop`] | the end of the guest |
//! | [`threads`] | threads, and the memory that each costs |
//! | [`lock`] | locks that survive a panic |
//! | [`jail`] | what the process gives up |
//!
//! Threads: the main thread owns the channel; one thread serves the disks, one the other devices and all streams; each
//! vCPU has one. The process ends when the channel closes or the guest stops, whatever the other threads do.

pub mod boot;
pub mod config;
pub mod control;
pub mod devices;
pub mod emulate;
pub mod event_loop;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod lock;
pub mod machine;
pub mod memory;
pub mod pause;
pub mod prefetch;
pub mod snapshot;
pub mod stop;
pub mod threads;
