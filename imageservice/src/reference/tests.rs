use proptest::prelude::*;

use super::*;

const HEX: &str = "abababababababababababababababababababababababababababababababab";

#[test]
fn short_names_become_canonical_and_familiar_again() {
    let digest = format!("sha256:{HEX}");
    let table: &[(&str, &str, &str)] = &[
        ("nginx", "docker.io/library/nginx:latest", "nginx"),
        ("nginx:1.29", "docker.io/library/nginx:1.29", "nginx:1.29"),
        ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx"),
        ("index.docker.io/library/nginx:a", "docker.io/library/nginx:a", "nginx:a"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest", "bitnami/redis"),
        ("localhost/app", "localhost/app:latest", "localhost/app"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("LOCALHOST:5000/app", "localhost:5000/app:latest", "localhost:5000/app"),
        ("Registry.Example.COM/a/b/c", "registry.example.com/a/b/c:latest", "registry.example.com/a/b/c"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app"),
        ("127.0.0.1/app", "127.0.0.1/app:latest", "127.0.0.1/app"),
        ("host:80/a", "host:80/a:latest", "host:80/a"),
        ("a__b/c-----d/e.f_g", "docker.io/a__b/c-----d/e.f_g:latest", "a__b/c-----d/e.f_g"),
        ("nginx:5000", "docker.io/library/nginx:5000", "nginx:5000"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
    ];
    for (text, canonical, familiar) in table {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.to_string(), *canonical, "{text}");
        assert_eq!(reference.familiar(), *familiar, "{text}");
        assert_eq!(reference.tagged().as_deref(), Some(*canonical), "{text}");
    }
    let by_digest: Reference = format!("quay.io/x/y@{digest}").parse().unwrap();
    assert_eq!((by_digest.tag(), by_digest.digest().map(|d| d.to_string())), (None, Some(digest.clone())));
    let both: Reference = format!("x:latest@{digest}").parse().unwrap();
    assert_eq!(both.to_string(), format!("docker.io/library/x:latest@{digest}"));
    assert_eq!(both.familiar(), format!("x:latest@{digest}"));
    assert_eq!(both.tagged(), None, "nobody checked the tag");
    assert_eq!(both.with_digest(&both.digest().unwrap()), format!("docker.io/library/x@{digest}"));
}

#[test]
fn a_refusal_names_the_wrong_part() {
    let long_tag = format!("a:{}", "t".repeat(129));
    let long_path = format!("h.io/{}", "p/".repeat(140) + "p");
    let long_host = format!("{}/a", vec!["h".repeat(60); 5].join("."));
    let id = format!("sha256:{HEX}");
    let upper_digest = format!("a@sha256:{}", HEX.to_uppercase());
    let table: &[(&str, &str)] = &[
        ("", "name"),
        ("https://quay.io/a", "name"),
        (HEX, "name"),
        (&id, "name"),
        ("a:", "tag"),
        ("a:-x", "tag"),
        ("a:b:c", "tag"),
        ("a:b/", "port"),
        (&long_tag, "tag"),
        ("a@", "digest"),
        ("a@sha256:abcd", "digest"),
        ("a@sha256:../../etc/passwd", "digest"),
        ("a@sha512:abcd", "digest"),
        (&upper_digest, "digest"),
        ("Nginx", "repository"),
        ("Foo/bar", "repository"),
        ("h.io/Foo", "repository"),
        ("/a", "repository"),
        ("a//b", "repository"),
        ("a/", "repository"),
        ("../etc", "host"),
        ("a/../b", "repository"),
        ("a..b", "repository"),
        ("a___b", "repository"),
        ("-a", "repository"),
        ("a b", "repository"),
        ("a\n", "repository"),
        ("\u{e9}", "repository"),
        ("a?b=c", "repository"),
        ("a#b", "repository"),
        ("h.io/", "repository"),
        ("h..io/a", "host"),
        ("-h.io/a", "host"),
        ("h_h.io/a", "host"),
        ("user:pw@h.io/a", "digest"),
        ("h.io:0/a", "port"),
        ("h.io:99999/a", "port"),
        ("h.io:+1/a", "port"),
        ("h.io:/a", "port"),
        ("[::1/a", "host"),
        ("[x]/a", "host"),
        ("[::1]x/a", "host"),
        (&long_path, "repository"),
        (&long_host, "host"),
    ];
    for (text, part) in table {
        match text.parse::<Reference>() {
            Ok(reference) => panic!("{text} was accepted as {reference}"),
            Err(error) => {
                assert_eq!(error.part, *part, "{text}: {error}");
                let shown = error.to_string();
                assert!(shown.contains("for example `") && !shown.contains('\n'), "{shown}");
            }
        }
    }
    assert_eq!("Quay.io/Team/App".parse::<Reference>().unwrap_err().example, "quay.io/team/app");
    assert_eq!("https://quay.io/a".parse::<Reference>().unwrap_err().example, "quay.io/a");
    assert!("x".repeat(100_000).parse::<Reference>().unwrap_err().to_string().len() < 500);
}

fn component() -> impl Strategy<Value = String> {
    "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}"
}

prop_compose! {
    fn good()(
        host in proptest::option::of("(localhost|[a-zA-Z0-9]{1,5}(-[a-z0-9]{1,3})?(\\.[a-z]{2,4}){1,2}|\\[fd00::[0-9a-f]{1,4}\\])(:[1-9][0-9]{0,3})?"),
        path in proptest::collection::vec(component(), 1..4),
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        digest in proptest::option::of("[0-9a-f]{64}"),
    ) -> String {
        // Without a host, a first component with a dot would be one.
        let host = host.or_else(|| (path.len() > 1).then(|| "docker.io".to_owned()));
        let mut text = host.map(|host| format!("{host}/")).unwrap_or_default();
        text.push_str(&path.join("/"));
        if let Some(tag) = tag {
            text.push(':');
            text.push_str(&tag);
        }
        if let Some(digest) = digest {
            text.push_str("@sha256:");
            text.push_str(&digest);
        }
        text
    }
}

proptest! {
    #[test]
    fn what_the_grammar_allows_is_accepted_and_its_forms_are_fixpoints(text in good()) {
        let reference: Reference = text.parse().map_err(|e: InvalidReference| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
        let familiar = reference.familiar();
        prop_assert_eq!(&familiar.parse::<Reference>().unwrap(), &reference, "{}", familiar);
    }

    #[test]
    fn anything_else_never_panics_and_what_is_accepted_is_safe_in_a_url_path(text in ".{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'/');
            prop_assert!(reference.repository().bytes().all(safe));
            prop_assert!(!reference.repository().contains(".."));
        }
    }

    #[test]
    fn near_misses_never_panic(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,60}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
        }
    }
}
