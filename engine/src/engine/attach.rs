//! Sandboxes that run: being attached to the first process, and starting others beside it.

use super::{Engine, Session};
use crate::{
    Error,
    control::{ExecRequest, Request},
    sandbox::Sandbox,
    spec,
};

impl Engine {
    /// What the first process of a running sandbox writes from now on, and its standard input and terminal.
    ///
    /// # Errors
    /// [`Error::CannotAttach`], those of [`Engine::find`].
    pub async fn attach(&self, reference: &str) -> Result<Session, Error> {
        let sandbox = self.find(reference)?;
        let stopped = || Error::CannotAttach(reference.to_owned());
        let session = self.open_session(&sandbox, &Request::Attach, stopped).await?;
        self.note(&sandbox, "attach", &[]);
        Ok(session)
    }

    /// Starts another process in a running sandbox; [`SessionOutput::started`](super::SessionOutput::started) tells how that
    /// went.
    ///
    /// # Errors
    /// [`Error::NotRunning`], those of [`Engine::find`] and of what is wrong with the request.
    pub async fn exec(&self, reference: &str, request: ExecRequest) -> Result<Session, Error> {
        let sandbox = self.find(reference)?;
        let stopped = || Error::NotRunning(reference.to_owned());
        // What is wrong is told before anything is asked for.
        spec::exec_spec(&sandbox.config, &request)?;
        let request = Request::Exec(Box::new(request));
        self.open_session(&sandbox, &request, stopped).await
    }

    pub(super) async fn open_session(
        &self,
        sandbox: &Sandbox,
        request: &Request,
        stopped: impl Fn() -> Error,
    ) -> Result<Session, Error> {
        if !sandbox.is_running() {
            return Err(stopped());
        }
        let stream = self.reach(sandbox.id()).await?.ok_or_else(&stopped)?;
        let mut session = Session::new(sandbox.id(), stream, None);
        session.input.send(request).await.map_err(|e| match e {
            Error::SupervisorLost(_) => stopped(),
            e => e,
        })?;
        Ok(session)
    }
}
