//! Finding the program and executing it (execve(2)), with the errors told apart as Docker tells them.

use std::{
    ffi::{CStr, CString, OsStr, c_char},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use rustix::io::Errno;

use crate::{error::LaunchError, init};

/// A program with its arguments and environment, ready for execve(2): nothing is allocated any more unless it fails.
pub(crate) struct Program {
    name: String,
    /// Where to try, in this order.
    candidates: Vec<CString>,
    /// As execve(2) takes them: pointers to the strings behind them, and a null pointer.
    argument_list: Vec<*const c_char>,
    environment_list: Vec<*const c_char>,
    /// What is executed in the place of `candidates`: an open program.
    opened: Option<RawFd>,
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
}

impl Program {
    /// Prepares to execute `args[0]`: looked up in the `PATH` of `environment` when it has no slash (environ(7)).
    pub(crate) fn new(args: &[String], environment: Vec<CString>) -> Result<Self, LaunchError> {
        let name = match args.first() {
            Some(name) if !name.is_empty() => name.clone(),
            _ => {
                return Err(LaunchError::BadSpec {
                    what: "command",
                    value: args.join(" "),
                    problem: "names no program",
                });
            }
        };
        let arguments = args
            .iter()
            .map(|arg| c_string("argument", arg))
            .collect::<Result<Vec<_>, _>>()?;
        let candidates = if name.contains('/') {
            vec![arguments[0].clone()]
        } else {
            in_path(search_path(&environment), arguments[0].to_bytes())
        };
        Ok(Self {
            name,
            candidates,
            argument_list: pointers(&arguments),
            environment_list: pointers(&environment),
            opened: None,
            _arguments: arguments,
            _environment: environment,
        })
    }

    /// Prepares to execute the init at `program`, see [`crate::init`], which executes `args`. The descriptor has to be open still
    /// when that happens.
    pub(crate) fn of_init(
        program: BorrowedFd<'_>,
        args: &[String],
        environment: Vec<CString>,
    ) -> Result<Self, LaunchError> {
        let mut all = vec![init::NAME.to_owned()];
        all.extend_from_slice(args);
        Ok(Self {
            opened: Some(program.as_raw_fd()),
            ..Self::new(&all, environment)?
        })
    }

    /// Executes it. Returns only when that fails.
    pub(crate) fn execute(&self) -> LaunchError {
        let (arguments, environment) = (&self.argument_list, &self.environment_list);
        if let Some(program) = self.opened {
            // SAFETY: the path is a NUL-terminated string, and both lists hold pointers to such strings, which `self` keeps, and end
            // with a null pointer.
            unsafe {
                libc::syscall(
                    libc::SYS_execveat,
                    program,
                    c"".as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                )
            };
            return LaunchError::NotExecutable {
                program: self.name.clone(),
                reason: io::Error::last_os_error().to_string(),
            };
        }
        for candidate in &self.candidates {
            // SAFETY: the path is a NUL-terminated string, and both lists hold pointers to such strings, which `self` keeps,
            // and end with a null pointer.
            unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            let error = io::Error::last_os_error();
            if let Some(error) = self.verdict(candidate, &error) {
                return error;
            }
        }
        LaunchError::NotInPath {
            program: self.name.clone(),
        }
    }

    /// What a failed attempt means; `None` when the next directory of `PATH` is to be tried.
    fn verdict(&self, candidate: &CStr, error: &io::Error) -> Option<LaunchError> {
        let path = Path::new(OsStr::from_bytes(candidate.to_bytes()));
        let is_directory = || std::fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
        let exists = || path.symlink_metadata().is_ok();
        let program = self.name.clone();
        let not_executable = |reason: &str| LaunchError::NotExecutable {
            program: program.clone(),
            reason: reason.into(),
        };
        // As Go's exec.LookPath, which Docker uses: what cannot be executed is passed over in a search of PATH.
        let searched = !self.name.contains('/');
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR) if searched && !exists() => None,
            // The interpreter in the first line of a script is missing, or the ELF file's.
            Some(Errno::NOENT | Errno::NOTDIR) => Some(LaunchError::NoSuchProgram { program }),
            Some(Errno::ACCESS | Errno::ISDIR) if searched => None,
            Some(Errno::ACCESS | Errno::ISDIR) if is_directory() => Some(not_executable("is a directory")),
            Some(Errno::ACCESS | Errno::PERM) => Some(not_executable("permission denied")),
            Some(Errno::NOEXEC) => Some(not_executable("exec format error")),
            Some(Errno::LOOP) => Some(not_executable("too many levels of symbolic links")),
            Some(Errno::NAMETOOLONG) => Some(not_executable("file name too long")),
            Some(Errno::TOOBIG) => Some(not_executable("argument list too long")),
            _ => Some(not_executable(&error.to_string())),
        }
    }
}

/// The value of `PATH`; empty when there is none.
fn search_path(environment: &[CString]) -> &[u8] {
    environment
        .iter()
        .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or_default()
}

/// `name` in each directory of a `PATH`; an empty one stands for the working directory.
fn in_path(path: &[u8], name: &[u8]) -> Vec<CString> {
    path.split(|&byte| byte == b':')
        .filter_map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            CString::new([directory, b"/", name].concat()).ok()
        })
        .collect()
}

/// A list as execve(2) takes it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// `value` as a C string.
pub(crate) fn c_string(what: &'static str, value: &str) -> Result<CString, LaunchError> {
    CString::new(value).map_err(|_| LaunchError::BadSpec {
        what,
        value: value.to_owned(),
        problem: "holds a NUL",
    })
}

/// Marks everything above standard error close-on-exec (close_range(2)), whoever opened it.
pub(crate) fn close_other_descriptors() -> io::Result<()> {
    // SAFETY: the flag changes what a later exec does; no descriptor is closed now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(args: &[&str], path: &str) -> LaunchError {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let environment = [CString::new(format!("PATH={path}")).unwrap()];
        Program::new(&args, environment.to_vec()).map_or_else(|e| e, |program| program.execute())
    }

    #[test]
    fn a_program_that_is_in_no_directory_of_the_path_is_not_found() {
        let error = attempt(&["no-such-program"], "/bin:/nonexistent");
        assert_eq!(
            error.to_string(),
            "exec: \"no-such-program\": executable file not found in $PATH"
        );
    }

    #[test]
    fn a_program_with_a_slash_is_not_searched() {
        let error = attempt(&["/nonexistent/x"], "/bin");
        assert_eq!(
            error.to_string(),
            "exec: \"/nonexistent/x\": no such file or directory"
        );
    }

    #[test]
    fn a_file_without_execute_permission_and_a_directory_are_not_executable() {
        let error = attempt(&["/etc/passwd"], "");
        assert_eq!(error.to_string(), "exec: \"/etc/passwd\": permission denied");
        let error = attempt(&["/etc"], "");
        assert_eq!(error.to_string(), "exec: \"/etc\": is a directory");
        // In a search it is as if they were not there.
        assert!(matches!(
            attempt(&["passwd"], "/etc"),
            LaunchError::NotInPath { .. }
        ));
    }

    #[test]
    fn a_file_that_is_no_program_has_a_format_error() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&file, "no program").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = attempt(&[file.to_str().unwrap()], "");
        assert!(error.to_string().ends_with("exec format error"), "{error}");
    }

    #[test]
    fn a_script_whose_interpreter_is_missing_is_not_found() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&file, "#!/no/such/interpreter\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = attempt(&[file.to_str().unwrap()], "");
        assert!(matches!(error, LaunchError::NoSuchProgram { .. }), "{error}");
    }

    #[test]
    fn an_empty_directory_of_the_path_is_the_working_directory() {
        let candidates = in_path(b"/bin::/usr/bin", b"x");
        let candidates: Vec<_> = candidates.iter().map(|c| c.to_str().unwrap()).collect();
        assert_eq!(candidates, ["/bin/x", "./x", "/usr/bin/x"]);
    }

    #[test]
    fn a_nul_and_an_empty_command_are_refused() {
        assert!(matches!(attempt(&["a\0b"], ""), LaunchError::BadSpec { .. }));
        assert!(matches!(attempt(&[""], ""), LaunchError::BadSpec { .. }));
        assert!(matches!(attempt(&[], ""), LaunchError::BadSpec { .. }));
    }
}
