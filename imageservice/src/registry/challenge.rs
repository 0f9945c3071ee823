//! `WWW-Authenticate`: which proof a registry asks for.
//! Pure functions over header text that a stranger wrote. Owns the grammar (RFC 9110, section 11).
//! Must never panic, nor let a malformed challenge pass for another one.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password.
    Basic,
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge to answer: a token where one is offered, else a password.
pub(super) fn read(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<Challenge> = texts.flat_map(parse).collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut scheme: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let value = tail.trim_start().strip_prefix('=').filter(|value| !value.starts_with('='));
        match (value, &mut scheme) {
            (Some(value), Some((_, params))) => {
                let (value, tail) = read_value(value.trim_start());
                params.push((word.to_ascii_lowercase(), value));
                rest = tail;
            }
            // A parameter of no scheme.
            (Some(_), None) => break,
            (None, _) => {
                found.extend(scheme.take().and_then(finish));
                scheme = Some((word.to_ascii_lowercase(), Vec::new()));
                rest = tail;
            }
        }
    }
    found.extend(scheme.and_then(finish));
    found
}

fn finish((scheme, params): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
        _ => None,
    }
}

/// A token or a quoted string, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return (value, quoted.get(at + 1..).unwrap_or_default()),
            c => {
                value.push(c);
                escaped = false;
            }
        }
    }
    (value, "")
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let table = [
            (r#"Basic realm="Registry""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a.io/token",service="a.io",scope="repository:x/y:pull,push""#,
                vec![bearer("https://a.io/token", Some("a.io"), Some("repository:x/y:pull,push"))],
            ),
            (
                r#"Negotiate, Basic realm="a, b", BEARER Realm = "https://a\"b" , scope=x"#,
                vec![Challenge::Basic, bearer("https://a\"b", None, Some("x"))],
            ),
            ("Bearer", vec![]),
            (r#"Bearer realm="unclosed"#, vec![bearer("unclosed", None, None)]),
            (r#"realm="x""#, vec![]),
            ("", vec![]),
        ];
        for (text, want) in table {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[ -~\u{80}-\u{ff}]{0,60}", more in "(Bearer|Basic|realm|=|\"|,| |\\\\){0,12}") {
            parse(&text);
            parse(&more);
        }
    }
}
