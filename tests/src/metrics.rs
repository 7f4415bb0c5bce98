//! Reading a Prometheus exposition: the text, and the values in it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(5);

/// One line of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A whole scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// As it came over the wire.
    pub text: String,
    pub samples: Vec<Sample>,
}

impl Metrics {
    pub fn parse(text: String) -> Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_line(line).with_context(|| format!("not a sample: {line:?}")))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { text, samples })
    }

    /// Sum over all samples with this name and (at least) these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.matching(name, labels)
            .map(|sample| sample.value as u64)
            .sum()
    }

    /// The one sample with this name and (at least) these labels; an error when it is not exactly one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
        let values: Vec<f64> = self
            .matching(name, labels)
            .map(|sample| sample.value)
            .collect();
        ensure!(
            values.len() == 1,
            "{} samples of {name}{labels:?} instead of one in\n{}",
            values.len(),
            self.text
        );
        Ok(values[0] as u64)
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|&(key, value)| sample.labels.get(key).is_some_and(|have| have == value))
        })
    }

    /// Runs `promtool check metrics` over the text. `None` when promtool is not installed, else its complaints.
    pub fn promtool_complaints(&self) -> Result<Option<String>> {
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot start promtool"),
        };
        child
            .stdin
            .take()
            .context("promtool has no stdin")?
            .write_all(self.text.as_bytes())?;
        let output = child.wait_with_output()?;
        let mut complaints = String::from_utf8_lossy(&output.stdout).into_owned();
        complaints.push_str(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() && complaints.is_empty() {
            complaints = format!("promtool ended with {}", output.status);
        }
        Ok(Some(complaints.trim().to_owned()))
    }
}

/// GET over HTTP/1.1 from the calling thread's namespace; status and body.
pub fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    http_get_over(stream, path)
}

/// The same over a Unix socket.
pub fn http_get_unix(socket: &Path, path: &str) -> Result<(u16, String)> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    http_get_over(stream, path)
}

fn http_get_over(mut stream: impl Read + Write, path: &str) -> Result<(u16, String)> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of headers")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("the answer has no status")?;
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        join_chunks(body).context("the answer's chunks are broken")?
    } else {
        body.to_owned()
    };
    Ok((status, body))
}

fn join_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Sample {
            name: series.to_owned(),
            labels: BTreeMap::new(),
            value,
        });
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        // None of our label values holds a quote.
        let (text, after) = after.split_once('"')?;
        labels.insert(key.to_owned(), text.to_owned());
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_labels() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total{service=\"web\",backend=\"10.0.0.1\"} 3\n\
                    a_total{service=\"web\",backend=\"10.0.0.2\"} 4\nup 1\n";
        let metrics = Metrics::parse(text.to_owned()).unwrap();
        assert_eq!(metrics.sum("a_total", &[("service", "web")]), 7);
        assert_eq!(
            metrics
                .value("a_total", &[("backend", "10.0.0.2")])
                .unwrap(),
            4
        );
        assert_eq!(metrics.value("up", &[]).unwrap(), 1);
        assert!(metrics.value("a_total", &[]).is_err());
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(join_chunks("4\r\nab\ncd"), None);
        assert_eq!(
            join_chunks("3\r\nab\n\r\n2\r\ncd\r\n0\r\n\r\n"),
            Some("ab\ncd".to_owned())
        );
    }
}
