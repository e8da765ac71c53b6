//! A registry that a test can make do anything: each request is answered by a function that writes the bytes itself.

#![allow(clippy::unwrap_used, reason = "a test may fail")]
#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use brig_image_store::{Store, digest::Digest};
use brig_registry::{
    Config, Error, Http,
    credentials::{Credential, Credentials},
    progress::{Event, Sink},
    pull::{Pull, Pulled, Registries, pull},
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// By name in lower case.
    pub headers: BTreeMap<String, String>,
    /// What was sent with it.
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Whether it is for the blob with this digest.
    pub fn is_blob(&self, digest: &Digest) -> bool {
        self.method == "GET" && self.path.ends_with(&format!("/blobs/{digest}"))
    }
}

/// Answers one request; the connection is closed afterwards.
pub type Handler = dyn Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync;

/// A running server. It ends with the test's process.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(
        handler: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start_reading(|_| usize::MAX, handler)
    }

    /// One that reads `most` bytes of a request's body and no more before it answers.
    pub fn start_reading(
        most: impl Fn(&Request) -> usize + Send + Sync + 'static,
        handler: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let most = Arc::new(most);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
        };
        let requests = server.requests.clone();
        let handler: Arc<Handler> = Arc::new(handler);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (requests, handler, most) = (requests.clone(), handler.clone(), most.clone());
                thread::spawn(move || {
                    if let Some(request) = read_request(&stream, &*most) {
                        requests.lock().unwrap().push(request.clone());
                        let mut stream = stream;
                        // A client that has gone away is none of the server's business.
                        let _ = handler(&request, &mut stream);
                    }
                });
            }
        });
        server
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn count(&self, fits: impl Fn(&Request) -> bool) -> usize {
        self.requests().iter().filter(|request| fits(request)).count()
    }
}

fn read_request(stream: &TcpStream, most: &dyn Fn(&Request) -> usize) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map(|length| length.parse::<usize>());
    let mut request = Request {
        method,
        path,
        headers,
        body: Vec::new(),
    };
    if let Some(length) = length {
        let mut body = vec![0; length.ok()?.min(most(&request))];
        reader.read_exact(&mut body).ok()?;
        request.body = body;
    }
    Some(request)
}

/// Writes an answer with a body and its length.
pub fn answer(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
    head(stream, status, headers, Some(body.len() as u64))?;
    stream.write_all(body)
}

/// Writes an answer's head alone.
pub fn head(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, &str)],
    length: Option<u64>,
) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    if let Some(length) = length {
        text.extend([format!("Content-Length: {length}\r\n")]);
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())
}

/// Waits, without sending anything, until the client has gone.
pub fn stall(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(|_| ())
}

/// Closes the connection in the rudest way.
pub fn reset(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(())
}

/// An image of layers, as a registry has it.
#[derive(Clone)]
pub struct Image {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: String,
    pub layers: Vec<Digest>,
    pub config: Digest,
}

impl Image {
    /// With these layers, whose bytes mean nothing: the host does not look into them.
    pub fn new(layers: &[Vec<u8>]) -> Self {
        Self::for_architecture("amd64", layers)
    }

    pub fn for_architecture(architecture: &str, layers: &[Vec<u8>]) -> Self {
        let mut blobs = BTreeMap::new();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/run"]},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| Digest::of(l).to_string()).collect::<Vec<_>>()},
        });
        let config = config.to_string().into_bytes();
        let descriptors: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = manifest(&config, &descriptors);
        let digests = layers.iter().map(|layer| Digest::of(layer)).collect();
        for layer in layers {
            blobs.insert(Digest::of(layer), layer.clone());
        }
        let digest = Digest::of(&config);
        blobs.insert(digest, config);
        Self {
            blobs,
            manifest,
            media_type: MANIFEST.to_owned(),
            layers: digests,
            config: digest,
        }
    }

    /// One layer of so many bytes.
    pub fn of_bytes(count: usize) -> Self {
        Self::new(&[noise(count)])
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub fn layer(&self) -> &[u8] {
        &self.blobs[&self.layers[0]]
    }

    /// Answers as an honest registry.
    pub fn serve(&self, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        if request.path.contains("/manifests/") {
            let digest = self.digest().to_string();
            if last.starts_with("sha256:") && last != digest {
                return answer(stream, "404 Not Found", &[], b"");
            }
            let headers = [
                ("Content-Type", self.media_type.as_str()),
                ("Docker-Content-Digest", &digest),
            ];
            let body: &[u8] = if request.method == "HEAD" {
                b""
            } else {
                &self.manifest
            };
            head(stream, "200 OK", &headers, Some(self.manifest.len() as u64))?;
            return stream.write_all(body);
        }
        let Some(blob) = last
            .parse()
            .ok()
            .and_then(|digest: Digest| self.blobs.get(&digest))
        else {
            return answer(stream, "404 Not Found", &[], b"");
        };
        let from = request.header("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
        match from {
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                answer(
                    stream,
                    "206 Partial Content",
                    &[("Content-Range", &range)],
                    &blob[from..],
                )
            }
            None => answer(stream, "200 OK", &[], blob),
        }
    }
}

pub fn manifest(config: &[u8], layers: &[Value]) -> Vec<u8> {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()})
}

/// Bytes that repeat in no short period.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ count as u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A store, and how registries are spoken to: with little patience.
pub struct Home {
    pub directory: TempDir,
    pub store: Store,
    pub config: Config,
    pub credentials: Credentials,
    events: Arc<Mutex<Vec<Event>>>,
}

pub fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("images")).unwrap();
    let mut config = Config::default();
    config.stall_timeout = Duration::from_secs(1);
    config.attempts = 2;
    Home {
        directory,
        store,
        config,
        credentials: Credentials::new(),
        events: Arc::default(),
    }
}

impl Home {
    pub fn with_password(mut self, server: &Server, user: &str, password: &str) -> Self {
        let credential = Credential::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        self.credentials.insert(server.address.to_string(), credential);
        self
    }

    pub fn registries(&self) -> Registries {
        Registries {
            http: Arc::new(Http::new(Arc::new(self.config.clone()))),
            credentials: self.credentials.clone(),
        }
    }

    pub fn sink(&self) -> Sink {
        let events = self.events.clone();
        Arc::new(move |event| events.lock().unwrap().push(event))
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Pulls `app:1` from a server of this machine.
    pub fn pull(&self, server: &Server) -> Result<Pulled, Error> {
        self.pull_name(&format!("{}/app:1", server.address), None)
    }

    pub fn pull_name(&self, name: &str, platform: Option<&str>) -> Result<Pulled, Error> {
        let wanted = Pull {
            reference: name.parse().unwrap(),
            platform: platform.map(|platform| platform.parse().unwrap()),
        };
        run(pull(&self.store, &self.registries(), &wanted, &self.sink()))
    }

    /// Pulls what must not come in: the error is one line, and the store is as it was.
    pub fn refused(&self, server: &Server) -> Error {
        let error = self.pull(server).unwrap_err();
        let line = error.line();
        assert!(!line.contains('\n') && line.len() < 1000, "{line}");
        self.assert_empty();
        error
    }

    pub fn assert_empty(&self) {
        assert_eq!(self.store.list().unwrap(), []);
        assert_eq!(self.store.check().unwrap(), []);
        let left = std::fs::read_dir(self.directory.path().join("images/tmp")).unwrap();
        assert_eq!(left.count(), 0);
    }
}

pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}
