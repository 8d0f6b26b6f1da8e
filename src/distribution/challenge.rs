//! What a registry asks for before it answers: `WWW-Authenticate`. Pure.

/// What a request has to carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password.
    Basic,
    /// A token that somebody else gives out.
    Bearer {
        /// Who: a URL.
        realm: String,
        /// For what, in their words.
        service: Option<String>,
    },
}

/// Reads one header; `None` if it asks for something else. Several schemes in one header are understood if ours is the
/// first of them.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameters = parameters(rest);
    let find = |name: &str| parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
    Some(Challenge::Bearer { realm: find("realm")?, service: find("service") })
}

/// `key="value",key=value`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => take_quoted(quoted),
            None => after
                .split_once(',')
                .map_or((after.trim().to_owned(), ""), |(value, rest)| (value.trim().to_owned(), rest)),
        };
        found.push((key.trim().to_owned(), value));
        rest = after.trim_start_matches([',', ' ']);
    }
    found
}

fn take_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &text[index + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_names_who_gives_tokens() {
        let header = r#"Bearer realm="https://auth.example/token",service="a, \"b\"",scope="repository:x:pull""#;
        let realm = "https://auth.example/token".to_owned();
        assert_eq!(parse(header), Some(Challenge::Bearer { realm: realm.clone(), service: Some("a, \"b\"".into()) }));
        assert_eq!(parse("bearer realm=https://auth.example/token"), Some(Challenge::Bearer { realm, service: None }));
        assert_eq!(parse("Basic realm=\"x\""), Some(Challenge::Basic));
        for bad in ["", "Bearer", "Bearer service=\"x\"", "Negotiate abc", "Bearer realm"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
