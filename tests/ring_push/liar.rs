//! A registry that says what a test wants: no real one lies. It has the blobs of a ring's layout, and no TLS.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// What a request said.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    /// In lower case, as they came.
    pub headers: Vec<String>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// How much of the body goes out before the connection ends; all of it if not said.
    pub cut: Option<usize>,
    /// The body is followed by this for as long as somebody reads.
    pub endless: bool,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, endless: false }
    }

    pub fn with(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }
}

type Twist = dyn Fn(&Asked, Answer) -> Answer + Send + Sync;

/// A server that ends with this.
pub struct Liar {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Serves a layout as any repository; each answer goes through `twist`.
    pub fn start(layout: &Path, twist: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let twist: Arc<Twist> = Arc::new(twist);
        let (layout, noted, ends) = (layout.to_owned(), asked.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Acquire) {
                    return;
                }
                let (layout, noted, twist) = (layout.clone(), noted.clone(), twist.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &layout, &noted, &*twist));
            }
        });
        Self { port, asked, over, thread: Some(thread) }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn reference(&self) -> String {
        format!("docker://{}/a", self.host())
    }

    /// Everything that it was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

/// One connection, one request: whoever wants more comes again.
fn serve(stream: &TcpStream, layout: &Path, noted: &Mutex<Vec<Asked>>, twist: &Twist) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines[0].split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap(), first.next().unwrap_or_default());
    let headers: Vec<_> = lines[1..].iter().map(|line| line.to_lowercase()).collect();
    let length = headers.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let _ = reader.take(length).read_to_end(&mut Vec::new());
    let asked = Asked { method, path, headers };
    noted.lock().unwrap().push(asked.clone());
    let answer = twist(&asked, honest(&asked, layout));
    // Whoever was answered may have gone.
    let _ = write(stream, &asked, &answer);
}

fn write(mut stream: &TcpStream, asked: &Asked, answer: &Answer) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} x\r\nConnection: close\r\n", answer.status)?;
    if !answer.endless {
        write!(stream, "Content-Length: {}\r\n", answer.body.len())?;
    }
    for header in &answer.headers {
        write!(stream, "{header}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    if asked.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
        if answer.endless {
            loop {
                stream.write_all(&[0; 4096])?;
            }
        }
    }
    stream.flush()
}

/// What a registry would answer that holds the layout.
fn honest(asked: &Asked, layout: &Path) -> Answer {
    let missing = || Answer::new(404, json!({"errors": [{"code": "UNKNOWN", "message": "not here"}]}).to_string());
    let path = asked.path.split('?').next().unwrap();
    if path == "/v2/" {
        return Answer::new(200, "{}");
    }
    if path.ends_with("/tags/list") {
        let tags: Vec<_> = entries(layout).into_iter().map(|(tag, _)| tag).collect();
        return Answer::new(200, json!({"name": "a", "tags": tags}).to_string());
    }
    let name = path.rsplit('/').next().unwrap();
    let digest = entries(layout).into_iter().find(|(tag, _)| tag == name).map_or(name.to_owned(), |(_, digest)| digest);
    let Some(hex) = digest.strip_prefix("sha256:") else { return missing() };
    match fs::read(blob(layout, hex)) {
        Ok(bytes) if path.contains("/manifests/") => Answer::new(200, bytes)
            .with("Content-Type: application/vnd.oci.image.manifest.v1+json")
            .with(&format!("Docker-Content-Digest: {digest}")),
        Ok(bytes) => Answer::new(200, bytes),
        Err(_) => missing(),
    }
}

/// Tags and digests of a layout.
pub fn entries(layout: &Path) -> Vec<(String, String)> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entry =
        |entry: &Value| (text(&entry["annotations"]["org.opencontainers.image.ref.name"]), text(&entry["digest"]));
    index["manifests"].as_array().unwrap().iter().map(entry).collect()
}

pub fn blob(layout: &Path, hex: &str) -> PathBuf {
    layout.join("blobs/sha256").join(hex)
}
