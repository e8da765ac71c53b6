//! The client's end of the network rows. The other end is [`crate::server`], which says what is sent.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{Measured, measure, measure_batches};
use crate::{
    options::{Command, Options},
    sampler::repeat,
    server::Mode,
};

/// Of what is sent and received.
pub(super) const BLOCK: usize = 64 << 10;

/// A request and its answer.
const REQUEST: usize = 128;

/// A server that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Most blocks of a sample: 64 MiB.
const BLOCKS_MAX: u64 = 1024;

fn server(options: &Options) -> io::Result<SocketAddr> {
    match options.command {
        Command::Client { server, .. } => Ok(server),
        _ => Err(io::Error::other("there is no server: use bench client HOST:PORT")),
    }
}

/// Connects, says what the connection is for and waits for the server's word on it.
fn open(server: SocketAddr, mode: Mode) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    stream.write_all(&[mode.byte()])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer != [mode.byte()] {
        return Err(io::Error::other(format!("{server} is no bench server")));
    }
    Ok(stream)
}

pub(super) fn connect(options: &Options) -> io::Result<Measured> {
    let server = server(options)?;
    // One at a time: closing is not counted, and no thousand closed ones wait for their end.
    measure_batches(options, 1, |_| {
        let start = Instant::now();
        let stream = open(server, Mode::Echo)?;
        let took = start.elapsed();
        drop(stream);
        Ok(took)
    })
}

pub(super) fn round_trip(options: &Options) -> io::Result<Measured> {
    let mut stream = open(server(options)?, Mode::Echo)?;
    measure(options, |count| repeat(count, || exchange(&mut stream, &mut [1])))
}

fn exchange(stream: &mut TcpStream, bytes: &mut [u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.read_exact(bytes)
}

/// One thread for each connection. Each batch is shared out among them, and takes as long as the last of them.
pub(super) fn requests(options: &Options) -> io::Result<Measured> {
    let (server, connections) = (server(options)?, options.connections as u64);
    let streams: io::Result<Vec<_>> = (0..connections).map(|_| open(server, Mode::Echo)).collect();
    let (report, finished) = mpsc::channel::<io::Result<()>>();
    thread::scope(|scope| {
        let workers: Vec<mpsc::Sender<u64>> = streams?
            .into_iter()
            .map(|mut stream| {
                let (sender, counts) = mpsc::channel();
                let report = report.clone();
                scope.spawn(move || {
                    let mut request = [1; REQUEST];
                    for count in counts {
                        let done = repeat(count, || exchange(&mut stream, &mut request)).map(drop);
                        let _ = report.send(done);
                    }
                });
                sender
            })
            .collect();
        let measured = measure(options, |count| {
            let start = Instant::now();
            let mut busy = 0;
            for (worker, sender) in (0..connections).zip(&workers) {
                let part = count / connections + u64::from(worker < count % connections);
                if part > 0 {
                    let _ = sender.send(part);
                    busy += 1;
                }
            }
            for _ in 0..busy {
                finished.recv().map_err(io::Error::other)??;
            }
            Ok(start.elapsed())
        });
        Ok(measured?.note("connections", connections))
    })
}

pub(super) fn upload(options: &Options) -> io::Result<Measured> {
    let mut stream = open(server(options)?, Mode::Sink)?;
    let block = vec![1; BLOCK];
    measure_batches(options, BLOCKS_MAX, |count| {
        let start = Instant::now();
        stream.write_all(&(count * BLOCK as u64).to_le_bytes())?;
        repeat(count, || stream.write_all(&block))?;
        stream.read_exact(&mut [0])?;
        Ok(start.elapsed())
    })
}

pub(super) fn download(options: &Options) -> io::Result<Measured> {
    let mut stream = open(server(options)?, Mode::Source)?;
    let mut block = vec![0; BLOCK];
    measure_batches(options, BLOCKS_MAX, |count| {
        let start = Instant::now();
        stream.write_all(&(count * BLOCK as u64).to_le_bytes())?;
        repeat(count, || stream.read_exact(&mut block))?;
        Ok(start.elapsed())
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::rows::tests::quick;

    fn client(server: SocketAddr) -> Options {
        let mut options = quick(std::path::Path::new("."));
        options.command = Command::Client {
            server,
            rows: Vec::new(),
        };
        options.connections = 3;
        options
    }

    #[test]
    fn all_rows_are_measured_against_a_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = client(listener.local_addr().unwrap());
        thread::spawn(move || crate::server::serve(&listener));
        for row in [connect, round_trip, requests, upload, download] {
            let times = row(&options).unwrap().times;
            assert!(times.samples.iter().all(|time| *time > 0.0));
        }
    }

    #[test]
    fn a_server_of_another_kind_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = client(listener.local_addr().unwrap());
        thread::spawn(move || listener.accept().unwrap().0.write_all(b"220 mail"));
        let error = round_trip(&options).unwrap_err().to_string();
        assert!(error.contains("no bench server"), "{error}");
    }

    #[test]
    fn nobody_there_is_an_error() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            connect(&client(free)).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert!(connect(&quick(std::path::Path::new("."))).is_err());
    }
}
