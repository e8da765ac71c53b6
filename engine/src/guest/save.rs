//! Writing a guest down, so that it can go on later or elsewhere.

use std::{fs::File, os::fd::AsFd, time::Duration};

use brig_protocol::vmm::{Command, Event};
use tokio::time::timeout;

use super::{Failure, GUEST_TEXT, Guest, is_idle_talk};
use crate::error::one_line;

/// How long the VMM may take. It writes each page of the guest's memory that is not zero.
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);

impl Guest {
    /// Has the VMM let the guest stand still, until it is told to resume. What is wrong with that is the inner error; the guest goes
    /// on then.
    pub(crate) async fn stand_still(&mut self) -> Result<Result<(), String>, Failure> {
        if self.vmm.channel.send(&Command::Pause, &[]).await.is_err() {
            return Err(self.last_event().await);
        }
        loop {
            match timeout(SAVE_TIMEOUT, self.vmm.channel.event()).await {
                Ok(Ok(Event::Paused)) => return Ok(Ok(())),
                Ok(Ok(Event::PauseFailed { message })) => return Ok(Err(one_line(&message, GUEST_TEXT))),
                Ok(Ok(event)) if is_idle_talk(&event) => {}
                Ok(Ok(event)) => return Err(Failure::Event(event)),
                Ok(Err(_)) => return Err(Failure::Ended),
                Err(_) => return Err(Failure::Silent(SAVE_TIMEOUT.as_secs())),
            }
        }
    }

    /// Has the VMM write the guest into two empty files. The guest stands still from then on, also when that failed: the
    /// inner error.
    pub(crate) async fn save(&mut self, memory: &File, state: &File) -> Result<Result<(), String>, Failure> {
        let files = [memory.as_fd(), state.as_fd()];
        if self.vmm.channel.send(&Command::Save, &files).await.is_err() {
            return Err(self.last_event().await);
        }
        loop {
            match timeout(SAVE_TIMEOUT, self.vmm.channel.event()).await {
                Ok(Ok(Event::Saved { .. })) => return Ok(Ok(())),
                Ok(Ok(Event::SaveFailed { message })) => return Ok(Err(one_line(&message, GUEST_TEXT))),
                Ok(Ok(event)) if is_idle_talk(&event) => {}
                Ok(Ok(event)) => return Err(Failure::Event(event)),
                Ok(Err(_)) => return Err(Failure::Ended),
                Err(_) => return Err(Failure::Silent(SAVE_TIMEOUT.as_secs())),
            }
        }
    }
}
