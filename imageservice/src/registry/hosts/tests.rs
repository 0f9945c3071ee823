use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = temp.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    temp
}

/// Base URL, role and capabilities of every endpoint, as one line each.
fn shown(endpoints: &[Arc<Endpoint>]) -> Vec<String> {
    let line = |endpoint: &Arc<Endpoint>| {
        let origin = if endpoint.is_origin() { " origin" } else { "" };
        let pull = if endpoint.capabilities.pull { " pull" } else { "" };
        let resolve = if endpoint.capabilities.resolve { " resolve" } else { "" };
        format!("{}{origin}{pull}{resolve}", endpoint.base())
    };
    endpoints.iter().map(line).collect()
}

fn endpoints_of(files: &[(&str, &str)], host: &str) -> Vec<String> {
    let temp = tree(files);
    shown(&Hosts::new(temp.path().to_owned()).endpoints(host).unwrap())
}

#[test]
fn without_a_file_the_registry_itself_is_asked() {
    for (host, want) in [
        ("quay.io", "https://quay.io/v2 origin pull resolve"),
        ("docker.io", "https://registry-1.docker.io/v2 origin pull resolve"),
        ("localhost:80", "http://localhost/v2 origin pull resolve"),
        ("127.0.0.1:5000", "https://127.0.0.1:5000/v2 origin pull resolve"),
        ("[::1]:5000", "https://[::1]:5000/v2 origin pull resolve"),
    ] {
        assert_eq!(endpoints_of(&[], host), [want]);
    }
}

#[test]
fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
server = "https://stand-in.example"

[host."https://zz.example"]
  capabilities = ["pull", "resolve"]
[host."http://10.0.0.1:5000/mirror"]
  capabilities = ["pull"]
[host."https://aa.example/team/v2/"]
  capabilities = ["resolve", "push", "referrers"]
  skip_verify = true
[host."https://bb.example/odd/path"]
  override_path = true
  dial_timeout = "1m30s"
  [host."https://bb.example/odd/path".header]
    x-one = "1"
    x-two = ["a", "b"]
"#;
    let temp = tree(&[("quay.io/hosts.toml", text)]);
    let endpoints = Hosts::new(temp.path().to_owned()).endpoints("quay.io").unwrap();
    assert_eq!(
        shown(&endpoints),
        [
            "https://zz.example/v2 pull resolve",
            "http://10.0.0.1:5000/mirror/v2 pull",
            "https://aa.example/team/v2 resolve",
            "https://bb.example/odd/path pull resolve",
            "https://stand-in.example/v2 origin pull resolve",
        ]
    );
    assert_eq!(endpoints[3].headers.get_all("x-two").iter().count(), 2);
    let url = |at: usize| endpoints[at].url("a/b/manifests/1").to_string();
    assert_eq!(url(0), "https://zz.example/v2/a/b/manifests/1?ns=quay.io");
    assert_eq!(url(3), "https://bb.example/odd/path/a/b/manifests/1?ns=quay.io");
}

#[test]
fn the_right_folder_is_found() {
    let host = |url: &str| format!("[host.\"{url}\"]\n");
    let files = [
        ("r.io_5000_/hosts.toml", host("https://one")),
        ("r.io:5000/hosts.toml", host("https://two")),
        ("_default/hosts.toml", host("https://any")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    assert_eq!(endpoints_of(&files, "r.io:5000")[0], "https://one/v2 pull resolve");
    assert_eq!(endpoints_of(&files[1..], "r.io:5000")[0], "https://two/v2 pull resolve");
    assert_eq!(
        endpoints_of(&files, "other.io"),
        ["https://any/v2 pull resolve", "https://other.io/v2 origin pull resolve"],
        "without `server` the registry itself comes last"
    );
    assert_eq!(endpoints_of(&[("r.io/ca.crt.old", "")], "r.io"), ["https://r.io/v2 origin pull resolve"]);
}

#[test]
fn a_bad_file_fails_with_its_line_and_never_falls_back() {
    let table = [
        ("server = \"https://x\"\n\n[host.\"https://y\"]\n  capabilites = [\"pull\"]\n", 4, "capabilites"),
        ("[host.\"https://y\"]\ncapabilities = [\"pull\",\n \"fetch\"]\n", 3, "unknown capability `fetch`"),
        ("[host.\"https://y\"\n", 1, ""),
        ("[host.\"ftp://y\"]\n", 1, "no http or https URL"),
        ("\n[host.\"https://u:p@y\"]\n", 2, "password"),
        ("[host.\"https://y\"]\nskip_verify = \"yes\"\n", 2, "boolean"),
        ("[host.\"https://y\"]\ndial_timeout = \"fast\"\n", 2, "no duration"),
        ("[host.\"https://y\"]\nclient = [[\"a\",\"b\"],[\"c\",\"d\"]]\n", 2, "more than one"),
        ("[host.\"https://y\".header]\n\"a b\" = \"c\"\n", 2, "no header name"),
        ("[host.\"https://y\".rewrite]\n\"a\" = \"c\"\n", 1, "rewrite"),
    ];
    for (text, line, word) in table {
        let temp = tree(&[("r.io/hosts.toml", text)]);
        let error = Hosts::new(temp.path().to_owned()).endpoints("r.io").unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.line, Some(line), "{shown}");
        assert!(shown.contains(word) && shown.contains("r.io/hosts.toml"), "{shown}");
        assert!(!shown.contains("u:p@"), "{shown}");
    }
    let temp = tree(&[("r.io/hosts.toml", "ca = \"missing.pem\"\n")]);
    let error = Hosts::new(temp.path().to_owned()).endpoints("r.io").unwrap_err();
    assert!(error.path.ends_with("r.io/missing.pem") && error.reason.contains("no such file"), "{error}");
    let temp = tree(&[
        ("r.io/hosts.toml", "[host.\"https://y\"]\nca = [\"bad.pem\"]\n"),
        ("r.io/bad.pem", "not a certificate"),
    ]);
    let error = Hosts::new(temp.path().to_owned()).endpoints("r.io").unwrap_err();
    assert!(error.path.ends_with("bad.pem") && error.reason.contains("PEM"), "{error}");
}

#[test]
fn a_changed_file_is_read_again_and_an_unchanged_one_keeps_its_connections() {
    let temp = tree(&[]);
    let hosts = Hosts::new(temp.path().to_owned());
    let first = hosts.endpoints("r.io").unwrap();
    assert!(Arc::ptr_eq(&first[0], &hosts.endpoints("r.io").unwrap()[0]));
    std::fs::create_dir(temp.path().join("r.io")).unwrap();
    let file = temp.path().join("r.io/hosts.toml");
    std::fs::write(&file, "[host.\"https://a\"]\n").unwrap();
    assert_eq!(hosts.endpoints("r.io").unwrap().len(), 2);
    std::fs::write(&file, "[host.\"https://a\"]\n[host.\"https://bb\"]\n").unwrap();
    assert_eq!(hosts.endpoints("r.io").unwrap().len(), 3);
    std::fs::write(&file, "nonsense").unwrap();
    assert!(hosts.endpoints("r.io").is_err());
    std::fs::remove_dir_all(temp.path().join("r.io")).unwrap();
    assert_eq!(hosts.endpoints("r.io").unwrap().len(), 1);
}
