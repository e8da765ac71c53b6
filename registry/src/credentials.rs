//! The users' names and passwords, as Docker keeps them: `config.json` in `$DOCKER_CONFIG` or `~/.docker`, and the
//! programs `docker-credential-NAME` that it names (docker-credential-helpers, `README.md`).

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{Error, config::DOCKER_HUB};

/// What Docker calls its own registry in this file.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Most bytes of the file, and of what a helper says.
const BYTES_MAX: u64 = 1 << 20;

/// The user name of helpers for what is no password but an identity token.
const TOKEN_USER: &str = "<token>";

/// Who a user is, for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token server gives other tokens for.
    Identity(String),
    /// A token for the registry itself.
    Bearer(String),
}

/// Nothing secret is shown.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user:?}, …)"),
            Self::Identity(_) => f.write_str("Identity(…)"),
            Self::Bearer(_) => f.write_str("Bearer(…)"),
        }
    }
}

/// Credentials by registry, as references name it.
pub type Credentials = BTreeMap<String, Credential>;

/// Docker's file of credentials.
#[derive(Debug)]
pub struct CredentialFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl CredentialFile {
    /// Reads the file; one that is not there has nothing.
    ///
    /// # Errors
    /// [`Error::Config`] when it cannot be read, or is no JSON object.
    pub fn open() -> Result<Self, Error> {
        let variable = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let directory = variable("DOCKER_CONFIG")
            .or_else(|| variable("HOME").map(|home| home.join(".docker")))
            .unwrap_or_else(|| PathBuf::from("/root/.docker"));
        Self::at(&directory.join("config.json"))
    }

    fn at(path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::Config {
            path: path.to_path_buf(),
            why,
        };
        let content = match fs::File::open(path) {
            Ok(file) => {
                let mut text = Vec::new();
                file.take(BYTES_MAX)
                    .read_to_end(&mut text)
                    .map_err(|e| wrong(e.to_string()))?;
                if text.trim_ascii().is_empty() {
                    Map::new()
                } else {
                    serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(e) => return Err(wrong(e.to_string())),
        };
        Ok(Self {
            path: path.to_path_buf(),
            content,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept for a registry, in the file or by a helper.
    ///
    /// # Errors
    /// [`Error::Credentials`] when the helper fails, or the entry is malformed.
    pub fn get(&self, host: &str) -> Result<Option<Credential>, Error> {
        let key = key_of(host);
        if let Some(helper) = self.helper(host)? {
            return helper.get(key, host);
        }
        match self.entry(host) {
            Some((_, entry)) => from_entry(entry, host),
            None => Ok(None),
        }
    }

    /// Keeps a credential, in the file or by a helper, and tells whether it now lies unencrypted in the file.
    ///
    /// # Errors
    /// [`Error::Credentials`], [`Error::Config`].
    pub fn set(&mut self, host: &str, credential: &Credential) -> Result<bool, Error> {
        let key = key_of(host);
        let helper = self.helper(host)?;
        if let Some(helper) = &helper {
            helper.store(key, host, credential)?;
        }
        let entry = match credential {
            _ if helper.is_some() => json!({}),
            Credential::Password { user, password } => {
                json!({ "auth": STANDARD.encode(format!("{user}:{password}")) })
            }
            Credential::Identity(token) => json!({ "auth": STANDARD.encode(":"), "identitytoken": token }),
            Credential::Bearer(token) => json!({ "registrytoken": token }),
        };
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            return Err(self.malformed("\"auths\" is no object"));
        };
        auths.insert(key.to_owned(), entry);
        self.write()?;
        Ok(helper.is_none())
    }

    /// Forgets a registry's credential, and tells whether there was one.
    ///
    /// # Errors
    /// [`Error::Credentials`], [`Error::Config`].
    pub fn remove(&mut self, host: &str) -> Result<bool, Error> {
        let mut known = false;
        if let Some(helper) = self.helper(host)? {
            known = helper.get(key_of(host), host)?.is_some();
            helper.erase(key_of(host), host)?;
        }
        if let Some((key, _)) = self.entry(host)
            && let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut)
        {
            auths.remove(&key);
            self.write()?;
            known = true;
        }
        Ok(known)
    }

    /// The entry of a registry: Docker has written addresses in the place of hosts in its time.
    fn entry(&self, host: &str) -> Option<(String, &Value)> {
        let auths = self.content.get("auths")?.as_object()?;
        let wanted = key_of(host);
        auths
            .get_key_value(wanted)
            .or_else(|| auths.iter().find(|(key, _)| bare(key) == bare(wanted)))
            .map(|(key, value)| (key.clone(), value))
    }

    fn helper(&self, host: &str) -> Result<Option<Helper>, Error> {
        let of_host = self.content.get("credHelpers").and_then(Value::as_object);
        let name = of_host
            .and_then(|helpers| helpers.get(key_of(host)).or_else(|| helpers.get(host)))
            .or_else(|| self.content.get("credsStore"))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty());
        let Some(name) = name else { return Ok(None) };
        if name.contains('/') {
            return Err(self.malformed("the name of a credential helper has a slash"));
        }
        Ok(Some(Helper(format!("docker-credential-{name}"))))
    }

    fn malformed(&self, why: &str) -> Error {
        Error::Config {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }

    /// Replaces the file; only its owner can read it.
    fn write(&self) -> Result<(), Error> {
        let failed = |e: io::Error| Error::Config {
            path: self.path.clone(),
            why: e.to_string(),
        };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        // The file may be a link to where a user keeps such things.
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut text = serde_json::to_vec_pretty(&self.content).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        let write = || -> io::Result<()> {
            fs::create_dir_all(directory)?;
            let temporary = target.with_extension(format!("json.{}", std::process::id()));
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &target)
        };
        write().map_err(failed)
    }
}

/// What a registry is called in the file.
fn key_of(host: &str) -> &str {
    if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host }
}

/// An address without its scheme and path.
fn bare(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    key.split('/').next().unwrap_or(key)
}

fn from_entry(entry: &Value, host: &str) -> Result<Option<Credential>, Error> {
    let text = |name: &str| {
        let value = entry.get(name).and_then(Value::as_str);
        value.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credential::Bearer(token)));
    }
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::Identity(token)));
    }
    if let Some(auth) = text("auth") {
        let wrong = || Error::Credentials {
            host: host.to_owned(),
            why: "the entry \"auth\" is no base64 of NAME:PASSWORD: log in again".to_owned(),
        };
        let plain = STANDARD.decode(auth.trim()).map_err(|_| wrong())?;
        let plain = String::from_utf8(plain).map_err(|_| wrong())?;
        let (user, password) = plain.split_once(':').ok_or_else(wrong)?;
        return Ok(Some(Credential::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }));
    }
    Ok(match (text("username"), text("password")) {
        (Some(user), Some(password)) => Some(Credential::Password { user, password }),
        _ => None,
    })
}

/// A program that keeps credentials.
struct Helper(String);

impl Helper {
    fn get(&self, key: &str, host: &str) -> Result<Option<Credential>, Error> {
        let (success, said) = self.run("get", key.as_bytes(), host)?;
        let text = String::from_utf8_lossy(&said);
        if !success {
            // The words that all helpers share (docker-credential-helpers, `credentials/error.go`).
            if text.contains("credentials not found") {
                return Ok(None);
            }
            return Err(self.failed(host, &text));
        }
        let value: Value =
            serde_json::from_slice(&said).map_err(|_| self.failed(host, "what it says is no JSON"))?;
        let field = |name: &str| {
            value
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (user, password) = (field("Username"), field("Secret"));
        Ok(match user.as_str() {
            "" if password.is_empty() => None,
            TOKEN_USER => Some(Credential::Identity(password)),
            _ => Some(Credential::Password { user, password }),
        })
    }

    fn store(&self, key: &str, host: &str, credential: &Credential) -> Result<(), Error> {
        let (user, secret) = match credential {
            Credential::Password { user, password } => (user.as_str(), password),
            Credential::Identity(token) | Credential::Bearer(token) => (TOKEN_USER, token),
        };
        let entry = json!({ "ServerURL": key, "Username": user, "Secret": secret }).to_string();
        match self.run("store", entry.as_bytes(), host)? {
            (true, _) => Ok(()),
            (false, said) => Err(self.failed(host, &String::from_utf8_lossy(&said))),
        }
    }

    fn erase(&self, key: &str, host: &str) -> Result<(), Error> {
        match self.run("erase", key.as_bytes(), host)? {
            (true, _) => Ok(()),
            (false, said) if String::from_utf8_lossy(&said).contains("credentials not found") => Ok(()),
            (false, said) => Err(self.failed(host, &String::from_utf8_lossy(&said))),
        }
    }

    fn run(&self, verb: &str, input: &[u8], host: &str) -> Result<(bool, Vec<u8>), Error> {
        let failed = |e: io::Error| self.failed(host, &e.to_string());
        let mut child = Command::new(&self.0)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read what it needs not is none the worse.
            let _ = stdin.write_all(input);
        }
        let mut said = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(BYTES_MAX).read_to_end(&mut said).map_err(failed)?;
        }
        Ok((child.wait().map_err(failed)?.success(), said))
    }

    fn failed(&self, host: &str, why: &str) -> Error {
        Error::Credentials {
            host: host.to_owned(),
            why: format!("{}: {}", self.0, crate::error::plain(why, 200)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_nothing_else_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/config.json");
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(
            &path,
            r#"{"HttpHeaders":{"x":"y"},"auths":{"https://old.example/v1/":{"auth":"dTpw"}}}"#,
        )
        .unwrap();
        let mut file = CredentialFile::at(&path).unwrap();
        assert_eq!(file.get("old.example").unwrap(), Some(password("u", "p")));
        assert!(file.set("localhost:5000", &password("me", "se:cret")).unwrap());
        assert!(file.set("docker.io", &Credential::Identity("t".into())).unwrap());
        let mut file = CredentialFile::at(&path).unwrap();
        assert_eq!(
            file.get("localhost:5000").unwrap(),
            Some(password("me", "se:cret"))
        );
        assert_eq!(
            file.get("docker.io").unwrap(),
            Some(Credential::Identity("t".into()))
        );
        assert_eq!(file.get("localhost:5001").unwrap(), None);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(file.remove("localhost:5000").unwrap() && !file.remove("localhost:5000").unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("HttpHeaders") && text.contains(DOCKER_HUB_KEY),
            "{text}"
        );
    }

    #[test]
    fn files_that_are_malformed_say_so_without_their_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, r#"["secret"]"#).unwrap();
        let line = CredentialFile::at(&path).unwrap_err().line();
        assert!(line.contains("config.json") && !line.contains("secret"), "{line}");
        fs::write(&path, r#"{"auths":{"h":{"auth":"c2VjcmV0"}}}"#).unwrap();
        let line = CredentialFile::at(&path).unwrap().get("h").unwrap_err().line();
        assert!(line.contains("log in again") && !line.contains("c2Vj"), "{line}");
        assert!(!format!("{:?}", password("u", "secret")).contains("secret"));
    }
}
