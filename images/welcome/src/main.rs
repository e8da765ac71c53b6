//! The program of the image `welcome`: see the library for what it serves.

use std::process::ExitCode;

use brig_welcome::{facts::Facts, server};

/// The port, unless the first argument names another.
const PORT: u16 = 80;

fn main() -> ExitCode {
    end_on_signal(libc::SIGTERM);
    end_on_signal(libc::SIGINT);
    let port = match std::env::args().nth(1).map(|text| text.parse()) {
        None => PORT,
        Some(Ok(port)) => port,
        Some(Err(_)) => {
            eprintln!("welcome: usage: welcome [PORT]");
            return ExitCode::from(2);
        }
    };
    let facts = Facts::gather();
    let served = server::listen(port).and_then(|listener| {
        println!("welcome: listening on port {}", listener.local_addr()?.port());
        server::serve(&listener, &facts)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("welcome: cannot serve port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lets a signal end the process with code 0. PID 1 needs a handler of its own: the kernel delivers no signal to it
/// that it has none for (pid_namespaces(7)).
fn end_on_signal(signal: i32) {
    extern "C" fn end(_: i32) {
        // SAFETY: _exit is async-signal-safe (signal-safety(7)) and touches no memory of ours.
        unsafe { libc::_exit(0) }
    }
    let handler: extern "C" fn(i32) = end;
    // SAFETY: the handler is a function of the type that signal(2) wants, lives as long as the program, and calls
    // nothing but _exit.
    unsafe {
        libc::signal(signal, handler as libc::sighandler_t);
    }
}
