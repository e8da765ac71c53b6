//! Asking before something is removed.

use std::io::{self, BufRead, Write};

use crate::failure::Failure;

/// Asks on standard error, and reads the answer from standard input. No answer is no.
pub fn ask(warning: &str) -> Result<bool, Failure> {
    let mut stderr = io::stderr().lock();
    write!(
        stderr,
        "WARNING! {warning}\nAre you sure you want to continue? [y/N] "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::command(format!("cannot read the answer: {e}")))?;
    if answer.is_empty() {
        // The next line is not to begin behind the question.
        writeln!(stderr)?;
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}
