//! GET requests to a server that is not trusted. In: an endpoint, perhaps a token, a path. Out: a small JSON text, or a file of exactly
//! the announced length. The token goes to the endpoint's own scheme, host and port and nowhere else, whatever a redirect says; every
//! body has a bound; a server that sends nothing for the given patience is given up. It knows no repository and no cache.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

/// Longest JSON text: a list of 4,096 files with their hashes has 1.5 MB.
const LONGEST_JSON: u64 = 16 << 20;
/// Most redirects of one request.
const REDIRECTS: usize = 8;
/// Requests for one file that in a row bring less than [`PROGRESS`] before the connection ends.
const TRIES: usize = 4;
/// Bytes by which a request must come further than all before it, so that it does not count as a failed try.
const PROGRESS: u64 = 1 << 20;
/// How much longer than the patience a whole JSON text may take.
const JSON_PATIENCE: u32 = 10;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server did not answer; what an earlier run fetched may serve.
    Unreachable(String),
    /// It answered, and its answer cannot be used.
    Refused(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Refused(error.to_string())
    }
}

/// Asks one endpoint.
pub(super) struct Client {
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    patience: Duration,
    /// One agent for each proxy (or none) in use, so that connections are kept.
    agents: RefCell<Vec<(Option<String>, Agent)>>,
}

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq)]
struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// Of an `http` or `https` address without user name; `None` for any other.
    fn of(address: &Uri) -> Option<Origin> {
        let secure = match address.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = address.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Some(Origin { secure, host: authority.host().to_ascii_lowercase(), port })
    }
}

/// What came before a body, and the body.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: ureq::BodyReader<'static>,
}

impl Answer {
    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.trim().parse().ok()
    }
}

impl Client {
    /// A client of `endpoint`, an `http` or `https` address.
    pub(super) fn new(
        endpoint: &str,
        token: Option<&str>,
        patience: Duration,
    ) -> Result<Client, Failure> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let address = endpoint.parse::<Uri>().ok().filter(|address| address.query().is_none());
        let origin = address.as_ref().and_then(Origin::of).ok_or_else(|| {
            Failure::Refused(format!("HF_ENDPOINT '{endpoint}' is not an address of the form https://host or http://host:port"))
        })?;
        Ok(Client {
            endpoint: endpoint.into(),
            origin,
            token: token.map(str::to_string),
            patience,
            agents: RefCell::default(),
        })
    }

    /// The JSON text at `path` of the endpoint, and the query of the next page if the answer names one.
    pub(super) fn json<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, Option<String>), Failure> {
        let answer = self.get(path, 0, Some(self.patience * JSON_PATIENCE))?;
        let next = answer
            .headers
            .get_all(header::LINK)
            .iter()
            .find_map(|value| next_query(value.to_str().ok()?));
        let mut text = Vec::new();
        let read = answer.body.take(LONGEST_JSON + 1).read_to_end(&mut text);
        if text.len() as u64 > LONGEST_JSON {
            return Err(Failure::Refused(format!(
                "the hub answers with more than {}, where a list of files was asked for",
                crate::units::Bytes(LONGEST_JSON)
            )));
        }
        read.map_err(|error| self.lost(&error))?;
        let value = serde_json::from_slice(&text)
            .map_err(|e| Failure::Refused(format!("the hub's answer is not understood: {e}")))?;
        Ok((value, next))
    }

    /// Writes what lies at `path` of the endpoint to the file `to`: exactly `size` bytes. A connection that ends early is taken up again
    /// where it ended; `tell` hears the bytes that are there.
    pub(super) fn download(
        &self,
        path: &str,
        size: u64,
        to: &Path,
        tell: &dyn Fn(u64),
    ) -> Result<(), Failure> {
        let mut file = File::create(to)?;
        let mut buffer = vec![0; 1 << 16];
        let (mut at, mut furthest, mut tries) = (0u64, 0u64, 0usize);
        loop {
            let mut answer = self.get(path, at, None)?;
            // A server that knows no ranges sends all of it again.
            if answer.status != 206 {
                file.set_len(0)?;
                file.rewind()?;
                at = 0;
            } else if answer.header(header::CONTENT_RANGE).and_then(range_start) != Some(at) {
                return Err(Failure::Refused(
                    "the hub sends another part of the file than was asked for".into(),
                ));
            }
            if let Some(length) = answer.length()
                && at.checked_add(length) != Some(size)
            {
                let sent = at.saturating_add(length);
                return Err(Failure::Refused(format!(
                    "the hub sends {sent} bytes where its list announced {size}"
                )));
            }
            let reason = loop {
                match answer.body.read(&mut buffer) {
                    Ok(0) => break "the connection ended".to_string(),
                    Ok(n) => {
                        if at + n as u64 > size {
                            return Err(Failure::Refused(format!(
                                "the hub sends more than the {size} bytes that its list announced"
                            )));
                        }
                        file.write_all(buffer.get(..n).unwrap_or_default())?;
                        at += n as u64;
                        tell(at);
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if is_timeout(&e) => return Err(self.silent()),
                    Err(e) => break e.to_string(),
                }
            };
            if at == size {
                return Ok(());
            }
            tries = if at >= furthest.saturating_add(PROGRESS) { 0 } else { tries + 1 };
            furthest = furthest.max(at);
            if tries == TRIES {
                return Err(Failure::Refused(format!(
                    "{furthest} of {size} bytes came, then {reason}, {TRIES} times in a row"
                )));
            }
        }
    }

    /// The answer to a GET, after redirects: 200, or 206 where it begins at byte `from`.
    fn get(&self, path: &str, from: u64, whole: Option<Duration>) -> Result<Answer, Failure> {
        // A server that is restarted or overloaded gets a second chance.
        match self.follow(path, from, whole) {
            Err(Failure::Unreachable(reason)) if !reason.contains(SILENT) => {
                std::thread::sleep(Duration::from_millis(500).min(self.patience));
                self.follow(path, from, whole)
            }
            other => other,
        }
    }

    fn follow(&self, path: &str, from: u64, whole: Option<Duration>) -> Result<Answer, Failure> {
        let bad = |address: &str| {
            let address: String = address.chars().take(200).collect();
            Failure::Refused(format!(
                "the hub redirects to '{address}', which is not an address that is followed"
            ))
        };
        let mut address = format!("{}{path}", self.endpoint);
        for _ in 0..=REDIRECTS {
            let uri: Uri = address.parse().map_err(|_| bad(&address))?;
            let origin = Origin::of(&uri).ok_or_else(|| bad(&address))?;
            // What began encrypted stays so.
            if self.origin.secure && !origin.secure {
                return Err(bad(&address));
            }
            let mut request =
                self.agent(&origin)?.get(&uri).config().timeout_recv_body(whole).build();
            request = request.header(header::ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin == self.origin) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|e| self.failed(e))?;
            let (parts, body) = answer.into_parts();
            let answer = Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.into_reader(),
            };
            match answer.status {
                200 => return Ok(answer),
                206 if from > 0 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => {
                    let to = answer.header(header::LOCATION).ok_or_else(|| bad(""))?;
                    address = joined(&uri, to).ok_or_else(|| bad(to))?;
                }
                status => return Err(self.status(status)),
            }
        }
        Err(Failure::Refused(format!("the hub redirects more than {REDIRECTS} times")))
    }

    fn status(&self, status: u16) -> Failure {
        let token = if self.token.is_some() {
            "the token in HF_TOKEN may not read it"
        } else {
            "set HF_TOKEN if it is private"
        };
        match status {
            401 | 403 => Failure::Refused(format!(
                "the hub does not let it be read (HTTP status {status}); {token}"
            )),
            404 => Failure::Refused(format!("the hub does not have it (HTTP status 404); {token}")),
            408 | 429 | 500.. => {
                Failure::Unreachable(format!("the hub failed (HTTP status {status})"))
            }
            _ => Failure::Refused(format!("the hub answers with the HTTP status {status}")),
        }
    }

    fn failed(&self, error: ureq::Error) -> Failure {
        match error {
            ureq::Error::Timeout(_) => self.silent(),
            ureq::Error::Io(e) if is_timeout(&e) => self.silent(),
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                Failure::Unreachable(format!("the hub cannot be reached ({error})"))
            }
            _ => Failure::Refused(format!("the hub cannot be asked ({error})")),
        }
    }

    fn lost(&self, error: &std::io::Error) -> Failure {
        if is_timeout(error) {
            self.silent()
        } else {
            Failure::Unreachable(format!("the hub's answer is cut off ({error})"))
        }
    }

    fn silent(&self) -> Failure {
        let seconds = crate::units::seconds(self.patience.as_secs_f64());
        Failure::Unreachable(format!("{SILENT} {seconds} (HF_HUB_DOWNLOAD_TIMEOUT)"))
    }

    /// The agent for a host: through the proxy that the environment names for it, or directly.
    fn agent(&self, origin: &Origin) -> Result<Agent, Failure> {
        let proxy = proxy_for(origin, |name| std::env::var(name).ok());
        let mut agents = self.agents.borrow_mut();
        if let Some((_, agent)) = agents.iter().find(|(known, _)| *known == proxy) {
            return Ok(agent.clone());
        }
        let through = match &proxy {
            None => None,
            Some(text) => Some(Proxy::new(text).map_err(|_| {
                Failure::Refused(
                    "the proxy that the environment names is not one of the form http://host:port"
                        .to_string(),
                )
            })?),
        };
        let patience = Some(self.patience);
        let agent: Agent = Agent::config_builder()
            .user_agent(concat!("llmopt/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(through)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_send_request(patience)
            .timeout_recv_response(patience)
            .timeout_per_read(patience)
            .timeout_per_write(patience)
            .build()
            .into();
        agents.push((proxy, agent.clone()));
        Ok(agent)
    }
}

/// How the reason of a server given up begins.
const SILENT: &str = "the hub sent nothing for";

/// ureq hands its own errors on inside of those of a reader.
fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>());
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
        || matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// The system's certificates (also `SSL_CERT_FILE` and `SSL_CERT_DIR`); where a container has none, Mozilla's as built in.
fn roots() -> RootCerts {
    #[cfg(target_os = "linux")]
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return RootCerts::WebPki;
    }
    RootCerts::PlatformVerifier
}

/// The proxy for an origin: `https_proxy`, `http_proxy` or `all_proxy`, in either case, unless `no_proxy` names the host or a domain of it.
fn proxy_for(origin: &Origin, get: impl Fn(&str) -> Option<String>) -> Option<String> {
    let value = |name: &str| {
        let text = get(name).or_else(|| get(&name.to_ascii_uppercase()))?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_string())
    };
    let spared = value("no_proxy").unwrap_or_default().split([',', ' ']).any(|entry| {
        let entry = entry.trim().to_ascii_lowercase();
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                (host, Some(port))
            }
            _ => (&entry[..], None),
        };
        let domain = host.trim_start_matches('*').trim_start_matches('.');
        let named = host == "*"
            || (!domain.is_empty()
                && (origin.host == domain
                    || origin.host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))));
        named && port.is_none_or(|port| port == origin.port.to_string())
    });
    let own = if origin.secure { "https_proxy" } else { "http_proxy" };
    if spared { None } else { value(own).or_else(|| value("all_proxy")) }
}

/// Where the part of a file begins that a `Content-Range: bytes 5-9/10` announces.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

/// The query of the next page in a `Link` header; scheme, host and path that it names are of no interest: the endpoint is asked.
fn next_query(value: &str) -> Option<String> {
    value.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters
            .split(';')
            .any(|p| p.trim().replace('"', "").eq_ignore_ascii_case("rel=next"));
        let query = address.split_once('?')?.1.split('#').next()?;
        let plain = query.len() <= 4096 && query.bytes().all(|b| b.is_ascii_graphic());
        (next && plain).then(|| query.to_string())
    })
}

/// The address that `to`, absolute or relative, means in an answer from `base`.
fn joined(base: &Uri, to: &str) -> Option<String> {
    let to = to.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let begins =
        |with: &str| to.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    Some(if begins("https://") || begins("http://") {
        to.to_string()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else if to.split(['/', '?']).next()?.contains(':') {
        return None;
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |p| p.0);
        format!("{scheme}://{authority}{folder}/{to}")
    })
}

/// A path's components as they stand in an address.
pub(super) fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte as char)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Option<Origin> {
        Origin::of(&address.parse().ok()?)
    }

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_else() {
        let hub = origin("https://hub.example").unwrap();
        for same in ["https://HUB.example:443/x?y", "https://hub.example/"] {
            assert_eq!(origin(same).as_ref(), Some(&hub), "{same}");
        }
        for other in [
            "http://hub.example",
            "https://hub.example:444",
            "https://hub.example.evil",
            "https://x.hub.example",
        ] {
            assert_ne!(origin(other), Some(hub.clone()), "{other}");
        }
        for none in [
            "https://hub.example@evil.example/",
            "ftp://hub.example",
            "file:///etc/passwd",
            "/x",
            "https:///x",
        ] {
            assert_eq!(origin(none), None, "{none}");
        }
    }

    #[test]
    fn redirects_are_joined_as_browsers_do_and_odd_schemes_are_not_followed() {
        let base: Uri = "https://a.b/c/d?e".parse().unwrap();
        for (to, expected) in [
            ("https://x/y", Some("https://x/y")),
            ("HTTP://x/y#z", Some("HTTP://x/y")),
            ("//x/y", Some("https://x/y")),
            ("/y?z", Some("https://a.b/y?z")),
            ("y", Some("https://a.b/c/y")),
            ("?q=1:2", Some("https://a.b/c/?q=1:2")),
            ("file:///etc/passwd", None),
            ("javascript:1", None),
        ] {
            assert_eq!(joined(&base, to).as_deref(), expected, "{to}");
        }
    }

    #[test]
    fn only_the_query_of_a_next_page_is_used() {
        let link = "<https://evil.example/steal?cursor=abc%3D&limit=9>; rel=\"next\"";
        assert_eq!(next_query(link).as_deref(), Some("cursor=abc%3D&limit=9"));
        assert_eq!(
            next_query("<https://a/b?c=1>; rel=prev, </x?d=2>; rel=next").as_deref(),
            Some("d=2")
        );
        for none in [
            "",
            "<https://a/b>; rel=next",
            "<https://a/b?c>; rel=last",
            "https://a/b?c; rel=next",
            "<a?b c>; rel=next",
        ] {
            assert_eq!(next_query(none), None, "{none}");
        }
    }

    #[test]
    fn the_proxy_is_the_one_of_the_scheme_and_no_proxy_names_domains() {
        let of = |address: &str, set: &[(&str, &str)]| {
            proxy_for(&origin(address).unwrap(), |name| {
                set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())
            })
        };
        let both = [
            ("http_proxy", "http://p:1"),
            ("HTTPS_PROXY", "http://p:2"),
            ("ALL_PROXY", "http://p:3"),
        ];
        assert_eq!(of("http://h", &both).as_deref(), Some("http://p:1"));
        assert_eq!(of("https://h", &both).as_deref(), Some("http://p:2"));
        assert_eq!(of("https://h", &both[2..]).as_deref(), Some("http://p:3"));
        assert_eq!(of("https://h", &[("https_proxy", " ")]), None);
        for (list, address, spared) in [
            ("hub.example", "https://hub.example", true),
            ("x, .example", "https://hub.example", true),
            ("*.example", "https://hub.example", true),
            ("ub.example", "https://hub.example", false),
            ("hub.example:8080", "https://hub.example", false),
            ("hub.example:443", "https://hub.example", true),
            ("*", "https://hub.example", true),
            ("127.0.0.1", "http://127.0.0.1:99", true),
            (".", "https://hub.example", false),
        ] {
            assert_eq!(
                of(address, &[("all_proxy", "p"), ("NO_PROXY", list)]).is_none(),
                spared,
                "{list} {address}"
            );
        }
    }

    #[test]
    fn names_are_encoded_and_ranges_read() {
        assert_eq!(encoded("sub/a b%é+?.gguf"), "sub/a%20b%25%C3%A9%2B%3F.gguf");
        assert_eq!(
            (range_start("bytes 5-9/10"), range_start("bytes */10"), range_start("5-9/10")),
            (Some(5), None, None)
        );
    }
}
