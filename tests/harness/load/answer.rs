//! Whether the bytes that came are a right answer. Pure: what is read, and how, is the client's.

/// How far an answer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More has to come.
    Partial,
    /// It is whole: that of the request's answers, and whether the server keeps the connection.
    Whole {
        /// Which.
        answer: usize,
        /// What it says of the connection.
        after: After,
    },
}

/// What the server does with the connection after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It awaits another request.
    Kept,
    /// It closes.
    Closed,
}

/// An answer that came by HTTP, so far.
///
/// # Errors
/// Why it can't be right any more.
pub fn check_http(bytes: &[u8], answers: &[Vec<u8>]) -> Result<Progress, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > 65536 { Err("head: too long".to_owned()) } else { Ok(Progress::Partial) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "head: not text".to_owned())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let mut words = status.split(' ');
    let version = words.next().unwrap_or_default();
    if words.next() != Some("200") || !version.starts_with("HTTP/1.") {
        return Err(format!(
            "status: {}",
            status.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect::<String>()
        ));
    }
    let mut after = if version == "HTTP/1.0" { After::Closed } else { After::Kept };
    let mut length = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Err("head: a line without a colon".to_owned()) };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "connection" if value.trim().eq_ignore_ascii_case("close") => after = After::Closed,
            "connection" if value.trim().eq_ignore_ascii_case("keep-alive") => after = After::Kept,
            _ => {}
        }
    }
    let Some(length) = length else { return Err("head: no Content-Length".to_owned()) };
    let body = &bytes[end + 4..];
    if body.len() < length {
        return Ok(Progress::Partial);
    }
    if body.len() > length {
        return Err(format!("body: {} bytes, {length} were announced", body.len()));
    }
    let answer = answers.iter().position(|answer| answer == body).ok_or_else(|| "body: another one".to_owned())?;
    Ok(Progress::Whole { answer, after })
}

/// An answer that is known byte for byte, so far.
///
/// # Errors
/// If it is another one.
pub fn check_bytes(bytes: &[u8], answers: &[Vec<u8>]) -> Result<Progress, String> {
    if let Some(answer) = answers.iter().position(|answer| answer == bytes) {
        return Ok(Progress::Whole { answer, after: After::Closed });
    }
    if answers.iter().any(|answer| answer.starts_with(bytes)) {
        return Ok(Progress::Partial);
    }
    let start = bytes.iter().take(40).map(|byte| byte.escape_ascii().to_string()).collect::<String>();
    Err(format!("body: another one, '{start}'"))
}
