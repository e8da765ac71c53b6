//! `--env-file`: files of environment variables, a line each.

use std::{fs, path::PathBuf};

use crate::failure::Failure;

/// Most bytes of such a file.
const FILE_BYTES: u64 = 1 << 20;

/// The entries of these files, in their order. `NAME` alone stands for the value that brig itself has, as on the command line.
///
/// # Errors
/// A file that cannot be read, is too large or has a line that is no variable.
pub fn read(paths: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut entries = Vec::new();
    for path in paths {
        let failed = |reason: String| Failure::usage(format!("env file {}: {reason}", path.display()));
        let length = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if length > FILE_BYTES {
            return Err(failed("is too large".to_owned()));
        }
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        entries.extend(parse(&text).map_err(failed)?);
    }
    Ok(entries)
}

/// Docker's rules (docker/cli, `opts/file.go`): white space before a line goes, one that begins with `#` is a comment, the
/// value is what follows the first `=`, as it stands.
fn parse(text: &str) -> Result<Vec<String>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut entries = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.is_empty() {
            return Err(format!("no variable name on line '{line}'"));
        }
        if name.contains(char::is_whitespace) {
            return Err(format!("variable '{name}' contains whitespaces"));
        }
        entries.push(line.to_owned());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_docker_does() {
        let text = "\u{feff}# comment\n\n  A=1 # not one\nB=\nC\nD=a=b\r\n";
        assert_eq!(parse(text).unwrap(), ["A=1 # not one", "B=", "C", "D=a=b"]);
        assert!(parse("=x").is_err() && parse("A B=x").is_err());
    }
}
