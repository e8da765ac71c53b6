//! Health checks: a process beside the first from time to time, and what comes of it in the sandbox's state.

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Order,
    exec::{ExecOrder, Replies, Wanted},
};
use crate::{
    control::{ExecRequest, Reply},
    sandbox::{
        Directory,
        health::{Checked, Health, HealthConfig},
    },
};

/// Most bytes of a check's output that are kept (moby, `daemon/health.go`).
const OUTPUT_BYTES: usize = 4096;

/// Exit code of a check that could not be started or took too long.
const NO_CODE: i32 = -1;

/// Checks until it is dropped. The sandbox in `directory` runs.
pub(super) async fn watch(config: HealthConfig, directory: Directory, orders: mpsc::Sender<Order>) {
    let started = Timestamp::now();
    let mut health = Health::starting();
    loop {
        sleep(health.rest(&config, started, Timestamp::now())).await;
        // One that stands still is neither well nor unwell.
        if directory.read_state().is_ok_and(|state| state.paused) {
            continue;
        }
        let Some(checked) = check(&config, &orders).await else {
            return;
        };
        let before = health.status;
        health = health.with(checked, &config, started);
        if health.status != before {
            directory.note(&format!("health_status: {}", health.status.as_str()), &[]);
        }
        // A state that cannot be written now is written with the next check.
        if let Ok(mut state) = directory.read_state() {
            state.health = Some(health.clone());
            let _ = directory.write_state(&state);
        }
    }
}

/// One check. `None`: the sandbox has ended.
async fn check(config: &HealthConfig, orders: &mpsc::Sender<Order>) -> Option<Checked> {
    let wanted = Wanted::Exec(Box::new(ExecRequest {
        args: config.args.clone(),
        ..ExecRequest::default()
    }));
    let start = Timestamp::now();
    let (answer, running) = oneshot::channel();
    let order = Order::Exec(ExecOrder { wanted, answer });
    orders.send(order).await.ok()?;
    let (exit_code, output) = match running.await.ok()? {
        Ok(running) => {
            let process = running.process;
            let mut output = Beginning::default();
            if let Ok(code) = timeout(config.timeout, output.fill(Replies::new(running))).await {
                (code, output.text())
            } else {
                let signal = 9;
                orders.send(Order::SignalProcess { process, signal }).await.ok()?;
                let text = format!("Health check exceeded timeout ({:?})", config.timeout);
                (NO_CODE, text)
            }
        }
        Err((_, message)) => (NO_CODE, message),
    };
    Some(Checked {
        start,
        end: Timestamp::now(),
        exit_code,
        output,
    })
}

/// The beginning of what a check writes, on both outputs.
#[derive(Default)]
struct Beginning {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Beginning {
    /// Takes everything to the end, and gives the exit code.
    async fn fill(&mut self, mut replies: Replies) -> i32 {
        while let Some(reply) = replies.next().await {
            match reply {
                Reply::Stdout(bytes) | Reply::Stderr(bytes) => self.add(&bytes),
                Reply::Ended { code } => return code,
                Reply::Failed { message, .. } => {
                    self.add(message.as_bytes());
                    return NO_CODE;
                }
                _ => {}
            }
        }
        NO_CODE
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES - self.bytes.len();
        self.is_cut |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        format!("{text}{}", if self.is_cut { "..." } else { "" })
    }
}
