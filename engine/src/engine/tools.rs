//! What runs in a sandbox, and what it takes.

use brig_protocol::{
    frame,
    tool::{FRAME_BYTES, Listed, PROCESSES_MAX, Process, Tool, Usage},
};
use serde::de::DeserializeOwned;

use super::{Engine, Message, Session};
use crate::{
    Error, Isolation,
    control::{Reply, Request, Traffic},
    error::one_line,
    sandbox::Sandbox,
    stats::{self, Sample},
};

/// Most bytes of an agent's complaint that are kept.
const COMPLAINT_BYTES: usize = 4096;

impl Engine {
    /// The processes of a running sandbox, by the pids that they have in it. Names and arguments are the sandbox's own words.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Tool`], those of [`Engine::find`].
    pub async fn processes(&self, reference: &str) -> Result<Vec<Process>, Error> {
        let sandbox = self.find(reference)?;
        let mut work = Work::begin(self, &sandbox, reference, Tool::Processes).await?;
        let mut processes = Vec::new();
        while let Listed::Process(process) = work.next().await? {
            if processes.len() >= PROCESSES_MAX {
                break;
            }
            processes.push(*process);
        }
        self.note(&sandbox, "top", &[]);
        Ok(processes)
    }

    /// What measures a running sandbox.
    ///
    /// # Errors
    /// [`Error::NotRunning`], those of [`Engine::find`].
    pub async fn meter(&self, reference: &str) -> Result<Meter, Error> {
        let sandbox = self.find(reference)?;
        if !sandbox.is_running() {
            return Err(Error::NotRunning(reference.to_owned()));
        }
        // The host sees what a container's processes are; of a guest it sees the VMM alone.
        let inside = match sandbox.config.isolation {
            Isolation::Vm => Some(Work::begin(self, &sandbox, reference, Tool::Usage).await?),
            Isolation::Container => None,
        };
        Ok(Meter { sandbox, inside })
    }

    pub(super) async fn begin_tool(
        &self,
        sandbox: &Sandbox,
        reference: &str,
        tool: Tool,
    ) -> Result<Session, Error> {
        let stopped = || Error::NotRunning(reference.to_owned());
        let mut session = self.open_session(sandbox, &Request::Tool(tool), stopped).await?;
        session.output.started(&mut |_| {}).await?;
        Ok(session)
    }
}

/// Measures a sandbox as often as it is asked.
#[derive(Debug)]
pub struct Meter {
    sandbox: Sandbox,
    inside: Option<Work>,
}

/// What a sandbox takes.
#[derive(Clone, Debug)]
pub struct Measured {
    /// As the host sees it.
    pub sample: Sample,
    /// Processes and threads, where that is known.
    pub threads: Option<u64>,
    /// What has gone through published ports, where that is known.
    pub traffic: Option<Traffic>,
}

impl Meter {
    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Measures. What a guest does not tell is left out.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the sandbox has ended.
    pub async fn measure(&mut self, engine: &Engine) -> Result<Measured, Error> {
        let sample = stats::sample(&self.sandbox)?;
        let threads = match &mut self.inside {
            None => sample.threads,
            Some(work) => {
                work.session.input.write_stdin(&[0]).await?;
                let usage: Usage = work.next().await?;
                Some(usage.threads)
            }
        };
        let traffic = match engine.ask(self.sandbox.id(), &Request::Traffic).await? {
            Some(Reply::Traffic(traffic)) => Some(traffic),
            _ => None,
        };
        Ok(Measured {
            sample,
            threads,
            traffic,
        })
    }
}

/// A tool at work, and what it has written that has not been taken.
#[derive(Debug)]
struct Work {
    name: String,
    session: Session,
    bytes: Vec<u8>,
    complaint: Vec<u8>,
}

impl Work {
    async fn begin(engine: &Engine, sandbox: &Sandbox, reference: &str, tool: Tool) -> Result<Self, Error> {
        Ok(Self {
            name: reference.to_owned(),
            session: engine.begin_tool(sandbox, reference, tool).await?,
            bytes: Vec::new(),
            complaint: Vec::new(),
        })
    }

    /// The next frame.
    async fn next<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let failed = |name: &str, reason: String| Error::Tool {
            name: name.to_owned(),
            reason,
        };
        loop {
            if let Some(prefix) = self.bytes.first_chunk::<{ frame::PREFIX_BYTES }>() {
                let length = frame::body_length(*prefix, FRAME_BYTES)
                    .map_err(|e| failed(&self.name, e.to_string()))?;
                let end = prefix.len() + length;
                if self.bytes.len() >= end {
                    let body: Vec<u8> = self.bytes.drain(..end).skip(frame::PREFIX_BYTES).collect();
                    return frame::decode(&body).map_err(|e| failed(&self.name, e.to_string()));
                }
            }
            match self.session.output.next().await? {
                Message::Stdout(bytes) => self.bytes.extend_from_slice(&bytes),
                Message::Stderr(bytes) => {
                    let room = COMPLAINT_BYTES.saturating_sub(self.complaint.len());
                    self.complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Message::Ended(_) | Message::Exited(_) => {
                    let said = String::from_utf8_lossy(&self.complaint).trim().to_owned();
                    let reason = if said.is_empty() {
                        "the sandbox has ended".to_owned()
                    } else {
                        one_line(&said, COMPLAINT_BYTES)
                    };
                    return Err(failed(&self.name, reason));
                }
            }
        }
    }
}
