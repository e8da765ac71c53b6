//! Published ports as `-p` writes them, `[[HOST-IP:][HOST-PORT[-LAST]]:]PORT[-LAST][/tcp]`, and as tables show them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// Most published ports of a sandbox.
pub const PORTS_MAX: usize = 512;

/// A TCP port of the sandbox and where on the host it shall be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address on the host; all IPv4 addresses when none was given.
    pub host_ip: IpAddr,
    /// First port of the host that may be taken; 0 leaves the choice to the kernel.
    pub host_port: u16,
    /// Last port of the host that may be taken: the first that is free is.
    pub host_port_last: u16,
    /// Port inside of the sandbox.
    pub container_port: u16,
}

/// A published port that is bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundPort {
    /// Address and port on the host.
    pub host: SocketAddr,
    /// Port inside of the sandbox.
    pub container_port: u16,
}

/// Why text is no published port.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortError {
    /// No form of `-p` looks so.
    #[error("invalid published port {0:?}: write it as 8080:80, 127.0.0.1:8080:80 or 80")]
    Malformed(String),
    /// Only TCP is forwarded.
    #[error("cannot publish {text:?}: only TCP ports can be published, not {protocol}")]
    Protocol {
        /// What was asked for.
        text: String,
        /// The protocol in it.
        protocol: String,
    },
    /// A range of the host and a range of the sandbox have different lengths.
    #[error("invalid published port {0:?}: the two ranges have different lengths")]
    Ranges(String),
    /// More than [`PORTS_MAX`].
    #[error("too many published ports: at most {PORTS_MAX}")]
    TooMany,
}

/// Parses one `-p` argument; a range gives several ports.
///
/// # Errors
/// [`PortError`].
pub fn parse(text: &str) -> Result<Vec<PublishedPort>, PortError> {
    let malformed = || PortError::Malformed(text.to_owned());
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !protocol.eq_ignore_ascii_case("tcp") {
        return Err(match protocol.to_ascii_lowercase().as_str() {
            known @ ("udp" | "sctp") => PortError::Protocol {
                text: text.to_owned(),
                protocol: known.to_ascii_uppercase(),
            },
            _ => malformed(),
        });
    }
    let (host, container) = match ports.rsplit_once(':') {
        Some((host, container)) => (Some(host), container),
        None => (None, ports),
    };
    let (first, last) = parse_range(container)
        .filter(|(first, _)| *first != 0)
        .ok_or_else(malformed)?;
    let (host_ip, host_ports) = parse_host(host).ok_or_else(malformed)?;
    let count = usize::from(last - first) + 1;
    if count > PORTS_MAX {
        return Err(PortError::TooMany);
    }
    let host_count = usize::from(host_ports.1 - host_ports.0) + 1;
    if count > 1 && host_ports != (0, 0) && host_count != count {
        return Err(PortError::Ranges(text.to_owned()));
    }
    Ok((0..count as u16)
        .map(|offset| {
            let (host_port, host_port_last) = match (host_ports, count) {
                ((0, 0), _) => (0, 0),
                // One port of the sandbox and a range of the host: any of the range.
                (range, 1) => range,
                ((start, _), _) => (start + offset, start + offset),
            };
            PublishedPort {
                host_ip,
                host_port,
                host_port_last,
                container_port: first + offset,
            }
        })
        .collect())
}

/// Parses all `-p` arguments.
///
/// # Errors
/// [`PortError`], also when there are more than [`PORTS_MAX`] in all.
pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Vec<PublishedPort>, PortError> {
    let mut ports = Vec::new();
    for text in texts {
        ports.extend(parse(text.as_ref())?);
        if ports.len() > PORTS_MAX {
            return Err(PortError::TooMany);
        }
    }
    Ok(ports)
}

/// `IP:PORTS`, `[IP]:PORTS`, `IP:`, `PORTS` or nothing.
fn parse_host(text: Option<&str>) -> Option<(IpAddr, (u16, u16))> {
    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let Some(text) = text else {
        return Some((ANY, (0, 0)));
    };
    let (ip, ports) = match text.rsplit_once(':') {
        None => (ANY, text),
        Some((ip, ports)) => {
            let address = match ip.strip_prefix('[') {
                Some(inner) => IpAddr::V6(inner.strip_suffix(']')?.parse().ok()?),
                None => IpAddr::V4(ip.parse().ok()?),
            };
            (address, ports)
        }
    };
    let ports = if ports.is_empty() {
        (0, 0)
    } else {
        parse_range(ports)?
    };
    (ports.0 != 0 || ports.1 == 0).then_some((ip, ports))
}

/// `80` or `80-82`, in order.
fn parse_range(text: &str) -> Option<(u16, u16)> {
    // `u16::from_str` would take a plus sign.
    let number = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some((first, last))
}

impl fmt::Display for BoundPort {
    /// As in the PORTS column: `0.0.0.0:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/tcp", self.host, self.container_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (String, u16, u16, u16) {
        let ports = parse(text).unwrap();
        assert_eq!(ports.len(), 1, "{text}");
        let port = &ports[0];
        (
            port.host_ip.to_string(),
            port.host_port,
            port.host_port_last,
            port.container_port,
        )
    }

    #[test]
    fn every_form_of_a_single_port_is_understood() {
        let any = || "0.0.0.0".to_owned();
        assert_eq!(one("8080:80"), (any(), 8080, 8080, 80));
        assert_eq!(one("127.0.0.1:8080:80"), ("127.0.0.1".to_owned(), 8080, 8080, 80));
        assert_eq!(one("0:80"), (any(), 0, 0, 80));
        assert_eq!(one("80"), (any(), 0, 0, 80));
        assert_eq!(one("80/tcp"), (any(), 0, 0, 80));
        assert_eq!(one("127.0.0.1::80"), ("127.0.0.1".to_owned(), 0, 0, 80));
        assert_eq!(one("[::1]:8080:80"), ("::1".to_owned(), 8080, 8080, 80));
        assert_eq!(one("8080-8090:80"), (any(), 8080, 8090, 80));
    }

    #[test]
    fn a_range_publishes_each_of_its_ports() {
        let ports = parse("8080-8082:80-82").unwrap();
        let pairs: Vec<_> = ports.iter().map(|p| (p.host_port, p.container_port)).collect();
        assert_eq!(pairs, [(8080, 80), (8081, 81), (8082, 82)]);
        assert!(parse("80-82").unwrap().iter().all(|p| p.host_port == 0));
    }

    #[test]
    fn ranges_of_different_lengths_are_refused() {
        assert_eq!(
            parse("8080-8081:80-82"),
            Err(PortError::Ranges("8080-8081:80-82".into()))
        );
        assert_eq!(parse("8080:80-82"), Err(PortError::Ranges("8080:80-82".into())));
    }

    #[test]
    fn only_tcp_can_be_published() {
        let error = parse("53:53/udp").unwrap_err();
        assert!(error.to_string().contains("not UDP"), "{error}");
    }

    #[test]
    fn other_text_is_no_port() {
        for text in [
            "",
            ":",
            "x",
            "80:x",
            "0",
            "8080:0",
            "65536",
            "8080:65536",
            "-1:80",
            "+80:80",
            "1.2.3:80:80",
            "::1:80:80",
            "[::1:80:80",
            "[127.0.0.1]:80:80",
            "80/",
            "80/xyz",
            "82-80",
            "a:80:80",
            "0-5:80",
            "1-2-3:4",
            "localhost:80:80",
        ] {
            assert!(
                matches!(parse(text), Err(PortError::Malformed(_))),
                "{text}: {:?}",
                parse(text)
            );
        }
    }

    #[test]
    fn the_number_of_ports_is_bounded() {
        assert_eq!(parse("1-60000"), Err(PortError::TooMany));
        assert_eq!(parse_all(&["1-300", "1001-1300"]), Err(PortError::TooMany));
    }

    #[test]
    fn a_bound_port_is_shown_as_docker_does() {
        let v6 = BoundPort {
            host: "[::1]:8080".parse().unwrap(),
            container_port: 80,
        };
        assert_eq!(v6.to_string(), "[::1]:8080->80/tcp");
    }
}
