//! Debian's docker-registry on a loopback port, and a wire before it that counts what is asked.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tempfile::TempDir;

/// A running registry. It ends when it is dropped.
pub struct Registry {
    process: Child,
    address: SocketAddr,
    directory: TempDir,
}

/// What a registry asks of its users.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// The name `me` and the password `se:cret`.
    pub password: bool,
    /// TLS with a certificate of an authority of its own.
    pub tls: bool,
    /// The same, and clients have to have a certificate of that authority.
    pub client_certificate: bool,
}

impl Registry {
    /// Starts a registry that asks nothing.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        Self::with(Wishes::default())
    }

    /// Starts a registry.
    ///
    /// # Panics
    /// When it does not start.
    pub fn with(wishes: Wishes) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n",
            path("data").display()
        );
        if wishes.tls || wishes.client_certificate {
            make_certificates(directory.path());
            let clients = if wishes.client_certificate {
                format!(", clientcas: [{}]", path("ca.pem").display())
            } else {
                String::new()
            };
            config.extend([format!(
                "  tls: {{certificate: {}, key: {}{clients}}}\n",
                path("server.pem").display(),
                path("server.key").display()
            )]);
        }
        if wishes.password {
            let made = Command::new("htpasswd").args(["-Bbn", "me", "se:cret"]).output();
            let file = made.expect("htpasswd runs").stdout;
            fs::write(path("htpasswd"), file).expect("a file can be written");
            config.extend([format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path("htpasswd").display()
            )]);
        }
        fs::write(path("config.yml"), config).expect("a file can be written");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts");
        let stderr = process.stderr.take().expect("standard error is a pipe");
        let address = announced(BufReader::new(stderr));
        Self {
            process,
            address,
            directory,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name in references, by name and not by number: the certificate is of both.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// The certificate of the authority that vouches for it.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate that it takes of a client, and its key.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        let path = |name: &str| self.directory.path().join(name);
        (path("client.pem"), path("client.key"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address that a registry says it listens on. What else it says is read, so that it never waits.
fn announced(mut stderr: BufReader<impl Read + Send + 'static>) -> SocketAddr {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        let count = stderr
            .read_line(&mut line)
            .expect("what the registry says can be read");
        assert!(count > 0, "docker-registry ended: {said}");
        if let Some((_, rest)) = line.split_once("listening on ") {
            let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
            let address = rest[..end.unwrap_or(rest.len())].parse();
            thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
            return address.expect("an address");
        }
        said.push_str(&line);
    }
}

/// Makes an authority and a certificate of its for this machine.
fn make_certificates(directory: &Path) {
    let run = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory)
            .output()
            .expect("openssl runs");
        assert!(output.status.success(), "openssl {arguments}: {output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-authority"
    ));
    let names = "subjectAltName=DNS:localhost,DNS:registry.example,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    fs::write(directory.join("names"), names).expect("a file can be written");
    for name in ["server", "client"] {
        run(&format!(
            "req {key} -keyout {name}.key -out {name}.csr -subj /CN=localhost"
        ));
        run(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile names"
        ));
    }
}

/// A wire to a server that writes down what is asked.
pub struct Wire {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    /// Bytes after which the next connection that carries so many is cut; 0 for none.
    cut: Arc<AtomicU64>,
}

impl Wire {
    /// A wire to `target`, open as long as this process runs.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let wire = Self {
            address: listener.local_addr().expect("a bound address"),
            requests: Arc::default(),
            cut: Arc::default(),
        };
        let (requests, cut) = (wire.requests.clone(), wire.cut.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                let (Ok(from_server), Ok(to_client)) = (server.try_clone(), client.try_clone()) else {
                    continue;
                };
                let (requests, cut) = (requests.clone(), cut.clone());
                thread::spawn(move || forward(client, server, Some(&requests), &cut));
                thread::spawn(move || forward(from_server, to_client, None, &AtomicU64::new(0)));
            }
        });
        wire
    }

    /// Its end for clients, as references name it.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Cuts the next connection on which a client has sent so many bytes.
    pub fn cut_after(&self, bytes: u64) {
        self.cut.store(bytes, Ordering::Relaxed);
    }

    /// What was asked since the last time: `GET /v2/app/manifests/1`.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An HTTP proxy that knows one name: `registry.example`, which is this machine. It ends with the process.
pub struct Proxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Self {
            address: listener.local_addr().expect("a bound address"),
            requests: Arc::default(),
        };
        let requests = proxy.requests.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let requests = requests.clone();
                thread::spawn(move || tunnel(client, &requests));
            }
        });
        proxy
    }

    /// Its address, as variables name it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Tunnels that were asked for since the last time: `registry.example:5000`.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves one `CONNECT` (RFC 9110, section 9.3.6), and nothing else.
fn tunnel(mut client: TcpStream, requests: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(client.read(&mut byte), Ok(1)) {
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    let port = target.and_then(|target| target.strip_prefix("registry.example:")?.parse::<u16>().ok());
    let server = port.and_then(|port| TcpStream::connect(("127.0.0.1", port)).ok());
    let Some(server) = server else {
        let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    let target = target.unwrap_or_default().to_owned();
    requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(target);
    let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    if let (Ok(from_server), Ok(to_client)) = (server.try_clone(), client.try_clone()) {
        thread::spawn(move || forward(from_server, to_client, None, &AtomicU64::new(0)));
        forward(client, server, None, &AtomicU64::new(0));
    }
}

/// Copies bytes to the end of the connection; the request lines among them are written down before they go on. A
/// connection that has carried `cut` bytes is cut, once.
fn forward(mut from: TcpStream, mut to: TcpStream, requests: Option<&Mutex<Vec<String>>>, cut: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    let mut rest = Vec::new();
    let mut carried = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        carried += count as u64;
        let limit = cut.load(Ordering::Relaxed);
        if limit != 0 && carried >= limit && cut.swap(0, Ordering::Relaxed) == limit {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        if let Some(requests) = requests {
            rest.extend_from_slice(&buffer[..count]);
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if let Some(request) = String::from_utf8_lossy(&line)
                    .trim_end()
                    .strip_suffix(" HTTP/1.1")
                {
                    let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
                    requests.push(request.to_owned());
                }
            }
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
