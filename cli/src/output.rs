//! A file that a command writes: it is there whole, or not at all.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// A file that is being written under another name. It goes when this is dropped before it is finished.
#[derive(Debug)]
pub struct FileOutput {
    file: File,
    /// Its name until it is whole; `None` when the target is no regular file, and once it is.
    unfinished: Option<PathBuf>,
    target: PathBuf,
}

impl FileOutput {
    /// Begins the file at `path`. A device or a pipe that is there already is written to as it is.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::command(format!("cannot write {}: {e}", path.display()));
        let target = path.to_owned();
        // What is behind a symbolic link is replaced, and not the link.
        let target = fs::canonicalize(&target).unwrap_or(target);
        if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            let file = File::options().write(true).open(&target).map_err(failed)?;
            return Ok(Self {
                file,
                unfinished: None,
                target,
            });
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".brig-{}", std::process::id()));
        let unfinished = target.with_file_name(name);
        let file = File::create(&unfinished).map_err(failed)?;
        Ok(Self {
            file,
            unfinished: Some(unfinished),
            target,
        })
    }

    /// What is to be written to.
    pub fn writer(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> Result<(), Failure> {
        let Some(unfinished) = self.unfinished.take() else {
            return Ok(());
        };
        fs::rename(&unfinished, &self.target).map_err(|e| {
            let _ = fs::remove_file(&unfinished);
            Failure::command(format!("cannot write {}: {e}", self.target.display()))
        })
    }
}

impl Drop for FileOutput {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            let _ = fs::remove_file(unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        fs::write(&path, "old").unwrap();
        let mut output = FileOutput::create(&path).unwrap();
        output.writer().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(output);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let mut output = FileOutput::create(&path).unwrap();
        output.writer().write_all(b"new").unwrap();
        output.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        FileOutput::create(Path::new("/dev/null"))
            .unwrap()
            .finish()
            .unwrap();
        assert!(FileOutput::create(&directory.path().join("no/such")).is_err());
    }
}
