//! `--cidfile`: a file with the id of the sandbox that was made.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use brig_engine::SandboxId;

use crate::failure::Failure;

/// A file that has been made and has no id yet. It goes with the failure to make the sandbox.
#[derive(Debug)]
pub struct CidFile {
    path: PathBuf,
    file: Option<File>,
}

impl CidFile {
    /// Makes the file. One that is there already may be another sandbox's: as with Docker it is not replaced.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create_new(path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Failure::usage(format!(
                "{} is there already: remove it, unless its sandbox still needs it",
                path.display()
            )),
            _ => Failure::usage(format!("cannot make {}: {e}", path.display())),
        })?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
        })
    }

    /// Writes the id, without a newline as Docker does.
    pub fn write(mut self, id: &SandboxId) -> Result<(), Failure> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        let written = file.write_all(id.as_str().as_bytes());
        written.map_err(|e| Failure::usage(format!("cannot write {}: {e}", self.path.display())))
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_with_the_id_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cid");
        drop(CidFile::create(&path).unwrap());
        assert!(!path.exists());
        let id = SandboxId::random().unwrap();
        CidFile::create(&path).unwrap().write(&id).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), id.as_str());
        assert!(CidFile::create(&path).is_err());
        assert!(path.exists());
    }
}
