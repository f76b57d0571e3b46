//! The latest row in Prometheus' text format, at a port of the loopback address.
//!
//! - PRO-1 Nobody from another machine reaches it: it listens on 127.0.0.1.
//! - PRO-2 Whoever connects costs little and not for long: connections are limited in number and in time, a request in length.
//! - PRO-3 A port that is taken, or an error of the listener, is a note and nothing more.

use std::fmt::Write;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::config::AutoOr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, sleep_until, timeout};

use super::catalogue::{METRICS, Metric, Point, Subject, Value};
use crate::listening::newcomers::Newcomers;
use crate::output::metrics::Row;

/// The ports that are tried for `"auto"`.
const PORTS: std::ops::RangeInclusive<u16> = 9464..=9473;
/// Connections at a time.
const MOST_CONNECTIONS: usize = 16;
/// For how long one is safe from those that come after it.
const GRACE: Duration = Duration::from_millis(100);
/// A request and its answer may take this long.
const LIMIT: Duration = Duration::from_secs(3);
/// And a request may be this long.
const LONGEST_REQUEST: usize = 8192;
/// Pause after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(200);

/// What is told.
#[derive(Debug, Default)]
pub struct Page {
    name: String,
    planned_steps: u64,
    step: Option<u64>,
    restarts: u32,
    checkpoint_step: Option<u64>,
    /// The latest of each metric of each GPU, in the order in which they came.
    points: Vec<Point>,
}

impl Page {
    /// The job is called `name` and has `steps` steps.
    pub fn describe(&mut self, name: &str, steps: u64) {
        (self.name, self.planned_steps) = (name.to_owned(), steps);
    }

    /// Attempt `number` begins.
    pub fn begin_attempt(&mut self, number: u32) {
        self.restarts = number;
    }

    /// A checkpoint of `step` is complete.
    pub fn checkpoint(&mut self, step: u64) {
        self.checkpoint_step = Some(step);
    }

    /// There is a new row.
    pub fn row(&mut self, row: &Row) {
        self.step = Some(row.step());
        for point in row.points() {
            let is_same = |known: &&mut Point| known.metric == point.metric && known.subject == point.subject;
            match self.points.iter_mut().find(is_same) {
                Some(known) => *known = point,
                None => self.points.push(point),
            }
        }
    }

    /// The text, in the format's version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let name = escaped(&self.name);
        family(&mut text, "dslaunch_run_info", "The run.", "gauge");
        line(&mut text, &format!("dslaunch_run_info{{name=\"{name}\",version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        let own = [
            ("dslaunch_planned_steps", "Steps of the whole run.", "gauge", Some(self.planned_steps)),
            ("dslaunch_train_step", "Step of the latest row.", "gauge", self.step),
            (
                "dslaunch_checkpoint_step",
                "Step of the latest checkpoint of this launch.",
                "gauge",
                self.checkpoint_step,
            ),
            ("dslaunch_restarts_total", "Restarts of this launch so far.", "counter", Some(self.restarts.into())),
        ];
        for (name, help, kind, value) in own {
            if let Some(value) = value {
                family(&mut text, name, help, kind);
                line(&mut text, &format!("{name} {value}"));
            }
        }
        for metric in METRICS {
            self.add(&mut text, metric);
        }
        text
    }

    fn add(&self, text: &mut String, metric: &Metric) {
        let mut points = self.points.iter().filter(|point| point.metric == metric).peekable();
        if points.peek().is_none() {
            return;
        }
        family(text, metric.prometheus, metric.help, "gauge");
        for point in points {
            let labels = match &point.subject {
                Subject::Job => String::new(),
                Subject::Gpu(gpu) => format!("{{gpu=\"{gpu}\"}}"),
                Subject::Set(set) => format!("{{set=\"{}\"}}", escaped(set)),
            };
            line(text, &format!("{}{labels} {}", metric.prometheus, number(point.value)));
        }
    }
}

fn family(text: &mut String, name: &str, help: &str, kind: &str) {
    line(text, &format!("# HELP {name} {help}"));
    line(text, &format!("# TYPE {name} {kind}"));
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The text of a number here: that of metrics.jsonl, and words for what is not finite.
fn number(value: Value) -> String {
    let not_finite = || match value.as_f64() {
        infinite if infinite > 0.0 => "+Inf",
        infinite if infinite < 0.0 => "-Inf",
        _ => "NaN",
    };
    value.text().unwrap_or_else(|| not_finite().to_owned())
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The page, at its port.
#[derive(Debug)]
pub struct Exporter {
    page: Arc<Mutex<Page>>,
    address: String,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Listens at `port` on a task of its own, until this is dropped. Needs a tokio runtime.
    pub async fn open(port: AutoOr<u64>) -> io::Result<Self> {
        let listener = listen(port).await?;
        let address = listener.local_addr()?.to_string();
        let page = Arc::new(Mutex::new(Page::default()));
        let task = tokio::spawn(answer_all(listener, page.clone()));
        Ok(Self { page, address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Changes what is told.
    pub fn change(&self, change: impl FnOnce(&mut Page)) {
        change(&mut self.page.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(port: AutoOr<u64>) -> io::Result<TcpListener> {
    let ports = match port {
        AutoOr::Given(port) => {
            let port = u16::try_from(port).map_err(io::Error::other)?;
            port..=port
        }
        AutoOr::Auto => PORTS,
    };
    let what = if ports.start() == ports.end() {
        ports.start().to_string()
    } else {
        format!("{} to {}", ports.start(), ports.end())
    };
    let mut refused = None;
    for port in ports {
        // PRO-1
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    let error = refused.expect("there is a port");
    Err(io::Error::new(error.kind(), format!("cannot listen at 127.0.0.1, port {what}: {error}")))
}

async fn answer_all(listener: TcpListener, page: Arc<Mutex<Page>>) {
    let mut newcomers: Newcomers<(), AbortHandle> = Newcomers::new(MOST_CONNECTIONS, GRACE);
    loop {
        if let Some(instant) = newcomers.room_at() {
            sleep_until(instant.into()).await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            newcomers.drop_one().iter().for_each(AbortHandle::abort);
            sleep(PAUSE).await;
            continue;
        };
        let page = page.clone();
        // A connection that breaks is its client's business.
        let answer = tokio::spawn(async move { drop(timeout(LIMIT, answer(stream, &page)).await) });
        newcomers.retain(AbortHandle::is_finished);
        newcomers.enter((), answer.abort_handle(), Instant::now()).iter().for_each(AbortHandle::abort);
    }
}

async fn answer(mut stream: TcpStream, page: &Mutex<Page>) -> io::Result<()> {
    let mut request = vec![];
    let is_whole = |request: &[u8]| request.windows(4).any(|end| end == b"\r\n\r\n");
    while !is_whole(&request) {
        if request.len() > LONGEST_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let text = || page.lock().unwrap_or_else(PoisonError::into_inner).text();
    stream.write_all(reply(&request, text).as_bytes()).await?;
    stream.shutdown().await
}

/// The answer to a request. Pure.
fn reply(request: &[u8], page: impl FnOnce() -> String) -> String {
    let first = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", page()),
        ("GET" | "HEAD", _) => ("404 Not Found", "text/plain; charset=utf-8", "it is at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain; charset=utf-8", "GET only\n".to_owned()),
    };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method != "HEAD" {
        text += &body;
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::output::sinks::catalogue::tests::{eval_row, full_row};

    fn page() -> Page {
        let mut page = Page::default();
        page.describe("a \"b\"\\\n", 400);
        page.row(&full_row(1));
        page.row(&full_row(2));
        page.row(&eval_row(2));
        page.checkpoint(2);
        page.begin_attempt(1);
        page
    }

    /// The samples of a page by name and labels. Panics where a rule of the text format is broken: every family is described once
    /// before its samples, which stand together; names, labels and numbers are well formed.
    fn parse(text: &str) -> BTreeMap<String, String> {
        let (mut samples, mut families, mut current) = (BTreeMap::new(), BTreeSet::new(), None);
        assert!(text.ends_with('\n'));
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            assert_eq!(line.trim(), line);
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap();
                assert!(!words.is_empty() && families.insert(name.to_owned()), "{line}");
                let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap().to_owned();
                assert!(["gauge", "counter"].contains(&kind.as_str()), "{kind}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                current = Some(name.to_owned());
                continue;
            }
            let (series, number) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| (name, Some(rest)));
            assert_eq!(current.as_deref(), Some(name), "{line} stands apart");
            let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            assert!(name.bytes().all(is_word) && !name.as_bytes()[0].is_ascii_digit(), "{name}");
            let mut rest = labels.map_or("", |labels| labels.strip_suffix('}').unwrap());
            while !rest.is_empty() {
                let (label, after) = rest.split_once("=\"").unwrap();
                assert!(label.bytes().all(is_word), "{label}");
                let mut escaped = false;
                let end = after.find(|letter| {
                    let ends = letter == '"' && !escaped;
                    escaped = letter == '\\' && !escaped;
                    ends
                });
                rest = &after[end.unwrap() + 1..];
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
            assert!(["NaN", "+Inf", "-Inf"].contains(&number) || number.parse::<f64>().is_ok(), "{number}");
            assert!(samples.insert(series.to_owned(), number.to_owned()).is_none(), "{series} twice");
        }
        samples
    }

    #[test]
    fn the_page_keeps_the_formats_rules_and_has_the_latest_of_all() {
        let samples = parse(&page().text());
        let get = |series: &str| samples.get(series).unwrap_or_else(|| panic!("no {series}")).as_str();
        assert_eq!(get("dslaunch_train_loss"), "2.5");
        assert_eq!(get("dslaunch_train_step"), "2");
        assert_eq!(get("dslaunch_train_grad_norm"), "0.30000000000000004");
        assert_eq!(get("dslaunch_tokens_per_second"), "1e+21");
        assert_eq!(get("dslaunch_gpu_power_watts{gpu=\"3\"}"), "612.25");
        assert_eq!(get("dslaunch_restarts_total"), "1");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(get(&format!("dslaunch_run_info{{name=\"a \\\"b\\\"\\\\\\n\",version=\"{version}\"}}")), "1");
        for metric in METRICS {
            assert!(
                samples.keys().any(|series| series.split('{').next() == Some(metric.prometheus)),
                "{}",
                metric.prometheus
            );
        }
        parse(&Page::default().text());
    }

    #[test]
    fn what_is_not_finite_has_the_formats_words() {
        let words = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|value| number(Value::Real(value)));
        assert_eq!(words, ["NaN", "+Inf", "-Inf"]);
    }

    #[test]
    fn other_requests_are_told_what_there_is() {
        let status = |request: &str| reply(request.as_bytes(), || "body".to_owned()).lines().next().unwrap().to_owned();
        assert_eq!(status("GET /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET /metrics?x=1 HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
        assert_eq!(status("\u{fffd}\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
        assert!(reply(b"HEAD /metrics HTTP/1.1\r\n\r\n", || "body".to_owned()).ends_with("\r\n\r\n"));
    }

    #[tokio::test]
    async fn pro_2_it_answers_beside_connections_that_say_nothing() {
        let exporter = Exporter::open(AutoOr::Auto).await.unwrap();
        exporter.change(|page| page.row(&full_row(1)));
        assert!(exporter.address().starts_with("127.0.0.1:"));
        let mut silent = vec![];
        for _ in 0..2 * MOST_CONNECTIONS {
            silent.push(TcpStream::connect(exporter.address()).await.unwrap());
        }
        let mut stream = TcpStream::connect(exporter.address()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(parse(body)["dslaunch_train_loss"], "3.0");
    }

    #[tokio::test]
    async fn pro_3_a_taken_port_is_an_error_that_names_it() {
        let first = Exporter::open(AutoOr::Auto).await.unwrap();
        let port: u64 = first.address().rsplit(':').next().unwrap().parse().unwrap();
        let error = Exporter::open(AutoOr::Given(port)).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen at 127.0.0.1, port {port}: ")), "{error}");
        let second = Exporter::open(AutoOr::Auto).await.unwrap();
        assert_ne!(first.address(), second.address());
    }
}
