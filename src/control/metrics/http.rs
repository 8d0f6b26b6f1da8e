//! As much of HTTP/1.1 as it takes to be scraped (RFC 9112): a request is read up to the end of its head, answered, and the
//! connection is closed. Decided here, done by [`super::visitor`].

use crate::metrics::CONTENT_TYPE;

/// The most bytes of a request's head.
pub(super) const HEAD_MAX: usize = 8 << 10;
/// The only path.
const PATH: &str = "/metrics";

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It is not said yet.
    Unknown,
    /// The numbers.
    Page,
    /// Something that is answered with this status.
    Refusal(Status),
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It is no request.
    BadRequest,
    /// There is nothing at that path.
    NotFound,
    /// The path can only be read.
    MethodNotAllowed,
    /// Its head is too long.
    HeadTooLarge,
    /// It is of a version that is not spoken.
    Version,
    /// The numbers could not be written.
    Failed,
}

/// Reads what has come so far.
pub(super) fn parse_head(bytes: &[u8]) -> Wanted {
    let Some(end) = head_end(bytes) else {
        return if bytes.len() >= HEAD_MAX { Wanted::Refusal(Status::HeadTooLarge) } else { Wanted::Unknown };
    };
    if end > HEAD_MAX {
        return Wanted::Refusal(Status::HeadTooLarge);
    }
    let bad = Wanted::Refusal(Status::BadRequest);
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return bad };
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return bad;
    };
    let token = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !token(method) || !token(target) || !version.starts_with("HTTP/") {
        return bad;
    }
    if !version.starts_with("HTTP/1.") {
        return Wanted::Refusal(Status::Version);
    }
    let path = target.split('?').next().unwrap_or_default();
    match (path == PATH, method) {
        (false, _) => Wanted::Refusal(Status::NotFound),
        (true, "GET") => Wanted::Page,
        (true, _) => Wanted::Refusal(Status::MethodNotAllowed),
    }
}

/// Where the head ends: after an empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let strict = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    let lenient = bytes.windows(2).position(|window| window == b"\n\n").map(|at| at + 2);
    match (strict, lenient) {
        (Some(strict), Some(lenient)) => Some(strict.min(lenient)),
        (strict, lenient) => strict.or(lenient),
    }
}

/// The numbers, as they are sent.
pub(super) fn page(text: &str) -> Vec<u8> {
    response("200 OK", CONTENT_TYPE, "", text)
}

/// A refusal, as it is sent.
pub(super) fn refusal(status: Status) -> Vec<u8> {
    let (line, allow) = match status {
        Status::BadRequest => ("400 Bad Request", ""),
        Status::NotFound => ("404 Not Found", ""),
        Status::MethodNotAllowed => ("405 Method Not Allowed", "Allow: GET\r\n"),
        Status::HeadTooLarge => ("431 Request Header Fields Too Large", ""),
        Status::Version => ("505 HTTP Version Not Supported", ""),
        Status::Failed => ("500 Internal Server Error", ""),
    };
    response(line, "text/plain; charset=utf-8", allow, &format!("{}: GET {PATH}\n", &line[4..]))
}

fn response(status: &str, kind: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = "X-Content-Type-Options: nosniff\r\nConnection: close\r\n";
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{headers}{head}\r\n{body}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_page_gets_it() {
        let refusal = Wanted::Refusal;
        for (request, wanted) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Wanted::Page),
            ("GET /metrics HTTP/1.0\n\n", Wanted::Page),
            ("GET /metrics?name[]=x HTTP/1.1\r\n\r\nmore", Wanted::Page),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", Wanted::Unknown),
            ("", Wanted::Unknown),
            ("GET / HTTP/1.1\r\n\r\n", refusal(Status::NotFound)),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", refusal(Status::NotFound)),
            ("POST /metrics HTTP/1.1\r\n\r\n", refusal(Status::MethodNotAllowed)),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", refusal(Status::MethodNotAllowed)),
            ("GET /metrics\r\n\r\n", refusal(Status::BadRequest)),
            ("GET  /metrics HTTP/1.1\r\n\r\n", refusal(Status::BadRequest)),
            ("GET /metrics HTTP/1.1 x\r\n\r\n", refusal(Status::BadRequest)),
            ("\r\n\r\n", refusal(Status::BadRequest)),
            ("PRI * HTTP/2.0\r\n\r\n", refusal(Status::Version)),
        ] {
            assert_eq!(parse_head(request.as_bytes()), wanted, "{request:?}");
        }
        assert_eq!(parse_head(b"GET /metrics\xff HTTP/1.1\r\n\r\n"), refusal(Status::BadRequest));
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "b".repeat(HEAD_MAX));
        assert_eq!(parse_head(long.as_bytes()), refusal(Status::HeadTooLarge));
        assert_eq!(parse_head(format!("{long}\r\n\r\n").as_bytes()), refusal(Status::HeadTooLarge));
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let text = String::from_utf8(page("abc\n")).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text;"), "{text}");
        assert!(text.contains("\r\nContent-Length: 4\r\n") && text.ends_with("\r\n\r\nabc\n"), "{text}");
        let text = String::from_utf8(refusal(Status::MethodNotAllowed)).unwrap();
        assert!(
            text.contains("\r\nAllow: GET\r\n") && text.ends_with("\r\n\r\nMethod Not Allowed: GET /metrics\n"),
            "{text}"
        );
    }
}
