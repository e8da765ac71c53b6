//! The command line.

use std::{net::SocketAddr, net::ToSocketAddrs, path::PathBuf, str::FromStr, time::Duration};

use crate::rows::{self, Row};

/// What `bench help` prints.
pub const HELP: &str = "\
Micro-benchmarks: a line of JSON for each row.

usage: bench [OPTION…] run [ROW…]                 measures rows on this machine (default: all)
       bench [OPTION…] client HOST:PORT [ROW…]    measures the way to a bench server
       bench [--port N] server                    echoes, takes and sends bytes
       bench [--seconds S] hold MIB               takes MIB of memory, gives it back after S seconds or on SIGUSR1,
                                                  waits for SIGTERM
       bench look                                 what this process sees of its machine: kernel, devices
       bench list                                 the rows, each with its unit and how it is measured

  --seconds S      for each row, about; a disk row takes at most as long again to write its file (default: 1)
  --samples N      most samples of a row (default: 200)
  --directory DIR  where the disk rows write, in a directory of their own (default: .)
  --size MIB       the file that the disk rows use (default: 64; less when a row's seconds are over before)
  --buffered       through the page cache; otherwise past it, where the file system can
  --files N        most files at a time of create and unlink (default: 1000)
  --file-bytes N   what is written into each of them (default: 0)
  --connections N  of the row requests (default: 8)
  --port N         of the server (default: 7000)

A line: {\"name\":…,\"unit\":…,\"better\":\"lower\"|\"higher\",\"warm_up\":[…],\"samples\":[…],\"operations\":N,…}
warm_up holds first runs, the very first one first; they are no samples. A sample is the mean of the operations in it.

  bench --seconds 0.5 run getppid page_fault
  bench --directory /data --size 256 run random_read random_write
  bench client 127.0.0.1:7000 round_trip upload
";

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Print [`HELP`].
    Help,
    /// Print the rows.
    List,
    /// Nothing, at once.
    Exit,
    /// Print what can be seen of the machine.
    Look,
    /// Measure local rows.
    Run {
        /// In this order.
        rows: Vec<&'static Row>,
    },
    /// Measure network rows.
    Client {
        /// The server's address.
        server: SocketAddr,
        /// In this order.
        rows: Vec<&'static Row>,
    },
    /// Be the other end of network rows.
    Server {
        /// 0 for a free one.
        port: u16,
    },
    /// Take memory and give it back.
    Hold {
        /// How much.
        mib: usize,
    },
}

/// A command and how it is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub command: Command,
    /// Time for each row.
    pub seconds: Duration,
    /// Most samples of a row.
    pub samples: usize,
    /// Where the disk rows make their directory.
    pub directory: PathBuf,
    /// Size of the disk rows' file.
    pub size_mib: u64,
    /// Whether the page cache is used.
    pub buffered: bool,
    /// Most files at a time.
    pub files: u64,
    /// Bytes in each of them.
    pub file_bytes: usize,
    /// Connections at a time.
    pub connections: usize,
}

/// Greatest values, so that a slip of a finger does not take the machine's memory or disk.
const SECONDS_MAX: f64 = 3600.0;
const SIZE_MIB_MAX: u64 = 1 << 20;
const HOLD_MIB_MAX: usize = 1 << 20;
const FILES_MAX: u64 = 1_000_000;
const FILE_BYTES_MAX: usize = 64 << 20;
const SAMPLES_MAX: usize = 100_000;
/// As many as the server takes.
const CONNECTIONS_MAX: usize = 200;

impl Options {
    /// Reads the words of a command line, without the program's name.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let mut options = Self {
            command: Command::Help,
            seconds: Duration::from_secs(1),
            samples: 200,
            directory: ".".into(),
            size_mib: 64,
            buffered: false,
            files: 1000,
            file_bytes: 0,
            connections: 8,
        };
        let (mut port, mut rest) = (7000, Vec::new());
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} takes a value"));
            match word.as_str() {
                "--seconds" => {
                    let seconds = number("--seconds", &value()?, 0.0, SECONDS_MAX)?;
                    options.seconds = Duration::from_secs_f64(seconds);
                }
                "--samples" => options.samples = number("--samples", &value()?, 1, SAMPLES_MAX)?,
                "--directory" => options.directory = value()?.into(),
                "--size" => options.size_mib = number("--size", &value()?, 1, SIZE_MIB_MAX)?,
                "--buffered" => options.buffered = true,
                "--files" => options.files = number("--files", &value()?, 1, FILES_MAX)?,
                "--file-bytes" => options.file_bytes = number("--file-bytes", &value()?, 0, FILE_BYTES_MAX)?,
                "--connections" => {
                    options.connections = number("--connections", &value()?, 1, CONNECTIONS_MAX)?;
                }
                "--port" => port = number("--port", &value()?, 0, u16::MAX)?,
                "--help" | "-h" => return Ok(options),
                _ if word.starts_with('-') => return Err(format!("unknown option {word}")),
                _ => rest.push(word),
            }
        }
        options.command = command(&rest, port)?;
        Ok(options)
    }
}

fn command(words: &[String], port: u16) -> Result<Command, String> {
    let Some((first, rest)) = words.split_first() else {
        return Ok(Command::Help);
    };
    let none = |command| match rest.first() {
        None => Ok(command),
        Some(word) => Err(format!("{first} takes no {word:?}")),
    };
    match first.as_str() {
        "help" => none(Command::Help),
        "list" => none(Command::List),
        "exit" => none(Command::Exit),
        "look" => none(Command::Look),
        "server" => none(Command::Server { port }),
        "run" => Ok(Command::Run {
            rows: find(rows::LOCAL, rest)?,
        }),
        "client" => {
            let (address, rest) = rest.split_first().ok_or("client takes HOST:PORT")?;
            let server = address.to_socket_addrs().ok().and_then(|mut all| all.next());
            Ok(Command::Client {
                server: server.ok_or(format!("{address:?} is no HOST:PORT that can be found"))?,
                rows: find(rows::NETWORK, rest)?,
            })
        }
        "hold" => match rest {
            [mib] => Ok(Command::Hold {
                mib: number("hold", mib, 1, HOLD_MIB_MAX)?,
            }),
            _ => Err("hold takes a number of MiB".into()),
        },
        _ => Err(format!("unknown command {first:?}")),
    }
}

fn find(all: &'static [Row], names: &[String]) -> Result<Vec<&'static Row>, String> {
    if names.is_empty() {
        return Ok(all.iter().collect());
    }
    let find = |name: &String| all.iter().find(|row| row.name == name);
    names
        .iter()
        .map(|name| find(name).ok_or(format!("unknown row {name:?}")))
        .collect()
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    what: &str,
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    match text.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!(
            "{what} takes a number from {least} to {most}, not {text:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(Into::into))
    }

    #[test]
    fn no_word_asks_for_help() {
        assert!(matches!(parse("").unwrap().command, Command::Help));
        assert!(matches!(parse("run --help").unwrap().command, Command::Help));
    }

    #[test]
    fn rows_come_in_the_order_that_they_are_asked_for() {
        let Command::Run { rows } = parse("run pipe_latency getppid").unwrap().command else {
            panic!("no run");
        };
        let names: Vec<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names, ["pipe_latency", "getppid"]);
    }

    #[test]
    fn without_a_name_all_rows_are_run() {
        let Command::Run { rows } = parse("run").unwrap().command else {
            panic!("no run");
        };
        assert_eq!(rows.len(), rows::LOCAL.len());
    }

    #[test]
    fn options_stand_before_and_behind_the_command() {
        let options = parse("--seconds 0.25 run getppid --samples 3 --buffered").unwrap();
        assert_eq!(options.seconds, Duration::from_millis(250));
        assert_eq!((options.samples, options.buffered), (3, true));
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, part) in [
            ("--seconds", "--seconds takes a value"),
            ("--seconds -1 run", "not \"-1\""),
            ("--seconds NaN run", "not \"NaN\""),
            ("--size 0 run", "from 1"),
            ("--files 9999999 run", "to 1000000"),
            ("--fast run", "unknown option --fast"),
            ("jump", "unknown command \"jump\""),
            ("run nothing", "unknown row \"nothing\""),
            ("run connect", "unknown row \"connect\""),
            ("list all", "list takes no \"all\""),
            ("client", "client takes HOST:PORT"),
            ("client 127.0.0.1", "no HOST:PORT"),
            ("hold", "hold takes"),
            ("hold much", "hold takes a number"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}
