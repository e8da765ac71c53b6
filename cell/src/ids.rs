//! User namespaces and which ids of the host theirs are (user_namespaces(7), newuidmap(1)).

use std::{fs, io::Write, process::Command};

use brig_protocol::cell::IdMap;
use rustix::{
    process::{Pid, getegid, geteuid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::error::{CellError, Context};

/// Says which ids those of the namespace of `pid` are. Called by its parent, outside.
pub fn write_maps(pid: Pid, map: &IdMap) -> Result<(), CellError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    match map {
        IdMap::Single => {
            // Who has no privileges outside may map a group only when nobody inside can drop one by that.
            write(pid, "setgroups", "deny")?;
            write(pid, "uid_map", &format!("0 {uid} 1"))?;
            write(pid, "gid_map", &format!("0 {gid} 1"))
        }
        IdMap::Range { first, count } => {
            let line = format!("0 {first} {count}");
            write(pid, "uid_map", &line)?;
            write(pid, "gid_map", &line)
        }
        IdMap::Subordinate {
            newuidmap,
            newgidmap,
            uids,
            gids,
        } => {
            run_helper(newuidmap, pid, uid, *uids)?;
            run_helper(newgidmap, pid, gid, *gids)
        }
    }
}

/// One write: the kernel takes a map only once.
fn write(pid: Pid, file: &str, line: &str) -> Result<(), CellError> {
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut opened| opened.write_all(line.as_bytes()))
        .step(format!("write {line:?} to {path}"))
}

/// Root is `own`, the ids from 1 on are of the range.
fn run_helper(program: &str, pid: Pid, own: u32, (first, count): (u32, u32)) -> Result<(), CellError> {
    let numbers = [0, own, 1, 1, first, count].map(|number| number.to_string());
    let output = Command::new(program)
        .arg(pid.as_raw_nonzero().to_string())
        .args(numbers)
        .env_clear()
        .output()
        .step(format!("run {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(CellError::Helper {
        program: program.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Makes the calling process root of its user namespace, whose ids are known by now.
pub fn become_root(map: &IdMap) -> Result<(), CellError> {
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    if *map != IdMap::Single {
        set_thread_groups(&[]).step("drop the supplementary groups")?;
    }
    set_thread_res_gid(gid, gid, gid).step("become the namespace's root group")?;
    set_thread_res_uid(uid, uid, uid).step("become the namespace's root")
}
