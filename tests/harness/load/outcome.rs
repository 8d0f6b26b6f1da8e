//! What became of the requests of a load.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

/// More failures than this are counted and not told one by one.
const TOLD: usize = 200;

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When it ended, in milliseconds from the start of the load.
    pub at_ms: u64,
    /// How long after its beginning, in microseconds.
    pub after_us: u32,
    /// The client's port, to find it in a capture; 0 for unix sockets and connections that were never made.
    pub port: u16,
    /// The step at which, and why.
    pub reason: String,
}

/// What became of all requests.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How many ended, well or badly.
    pub requests: u64,
    /// How many failed, for each reason.
    pub reasons: BTreeMap<String, u64>,
    /// Failures one by one, the first some hundred.
    pub failures: Vec<Failure>,
    /// How often each right answer came, in the order of the request's answers.
    pub answers: Vec<u64>,
    /// Kept connections that the server closed between two requests: a client has to ask again, and these did.
    pub retired: u64,
    /// Connections that were made.
    pub connected: u64,
    /// Of each request that went well: microseconds, ascending once the load has ended.
    pub latencies: Vec<u32>,
    /// How long the load went on.
    pub elapsed: Duration,
}

impl Outcome {
    /// How many failed.
    pub fn failed(&self) -> u64 {
        self.reasons.values().sum()
    }

    /// A request that was answered, by which of the answers.
    pub fn note_answer(&mut self, answer: usize, latency: u32) {
        self.requests += 1;
        if self.answers.len() <= answer {
            self.answers.resize(answer + 1, 0);
        }
        self.answers[answer] += 1;
        self.latencies.push(latency);
    }

    /// A request that was not.
    pub fn note_failure(&mut self, failure: Failure) {
        self.requests += 1;
        *self.reasons.entry(failure.reason.clone()).or_default() += 1;
        if self.failures.len() < TOLD {
            self.failures.push(failure);
        }
    }

    /// Microseconds that so many percent of the requests took at most; none if none went well.
    pub fn percentile(&self, percent: f64) -> Option<u32> {
        let last = self.latencies.len().checked_sub(1)?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let index = (last as f64 * percent / 100.0).round() as usize;
        self.latencies.get(index.min(last)).copied()
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        for (reason, count) in other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.answers.resize(self.answers.len().max(other.answers.len()), 0);
        for (mine, theirs) in self.answers.iter_mut().zip(&other.answers) {
            *mine += theirs;
        }
        self.retired += other.retired;
        self.connected += other.connected;
        self.latencies.extend(other.latencies);
    }

    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
        self.latencies.sort_unstable();
        self.failures.sort_by_key(|failure| failure.at_ms);
        self.failures.truncate(TOLD);
    }

    /// One JSON object, in one line.
    pub fn to_json(&self) -> String {
        let mut text = format!(
            r#"{{"requests":{},"failed":{},"connected":{},"retired":{},"seconds":{:.3},"answers":{:?},"#,
            self.requests,
            self.failed(),
            self.connected,
            self.retired,
            self.elapsed.as_secs_f64(),
            self.answers,
        );
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9), ("max", 100.0)] {
            let value = self.percentile(percent).map_or_else(|| "null".to_owned(), |latency| latency.to_string());
            let _ = write!(text, r#""{name}_us":{value},"#);
        }
        let reasons: Vec<_> = self.reasons.iter().map(|(reason, count)| format!("{}:{count}", quote(reason))).collect();
        let failures: Vec<_> = self.failures.iter().map(Failure::to_json).collect();
        let _ = write!(text, r#""reasons":{{{}}},"failures":[{}]}}"#, reasons.join(","), failures.join(","));
        text
    }
}

impl Failure {
    fn to_json(&self) -> String {
        let reason = quote(&self.reason);
        format!(r#"{{"at_ms":{},"after_us":{},"port":{},"reason":{reason}}}"#, self.at_ms, self.after_us, self.port)
    }
}

/// A string of JSON. Reasons are of our own making: nothing but these two has to be escaped.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// For the message of a test that fails.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} requests failed: {:?}", self.failed(), self.requests, self.reasons)?;
        for failure in self.failures.iter().take(20) {
            let Failure { at_ms, after_us, port, reason } = failure;
            write!(f, "\n  at {at_ms} ms, after {after_us} us, from port {port}: {reason}")?;
        }
        Ok(())
    }
}
