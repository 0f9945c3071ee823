//! Who may see a credential (T9): challenges, tokens, redirects, mirrors.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    Credentials, Node,
    image::{Image, digest},
    password,
    server::{Reply, Request, Server, Shelf},
};

/// base64 of `user:secret`.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn authorized(request: &Request, want: &str) -> bool {
    request.header("authorization") == Some(want)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_shown_when_asked_for_and_remembered() {
    let made = Image::simple(1);
    let server = Server::plain(made.shelf("app", "1"), |request| {
        (!authorized(request, BASIC)).then(|| Reply::status(401).header("www-authenticate", "Basic realm=\"r\""))
    })
    .await;
    let name = format!("{}/app:1", server.host());
    let node = Node::new();
    let text = node.refuse(&name).await;
    assert!(text.contains("asked without credentials"), "{text}");
    let text = node.refuse_as(&name, Some(password("user", "wrong"))).await;
    assert!(text.contains("the credentials were refused") && !text.contains("wrong"), "{text}");
    server.forget();
    node.pull_as(&name, Some(password("user", "secret"))).await.unwrap();
    let refused = server.seen().iter().filter(|request| !authorized(request, BASIC)).count();
    assert_eq!(refused, 1, "only the first request is made without");
    // Base64 as the kubelet may give it.
    let auth = Credentials { auth: "dXNlcjpzZWNyZXQ=".into(), ..Credentials::default() };
    Node::new().pull_as(&name, Some(auth)).await.unwrap();
}

/// A registry with a token server on its own; tokens are good for three requests.
async fn with_tokens(
    made: &Image,
    check: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Server) {
    let issued = Arc::new(AtomicUsize::new(0));
    let counter = issued.clone();
    let tokens = Server::plain(Shelf::new(), move |request| {
        Some(check(request).unwrap_or_else(|| {
            let number = counter.fetch_add(1, Ordering::SeqCst);
            Reply::ok("application/json", format!(r#"{{"token":"t{number}","expires_in":300}}"#))
        }))
    })
    .await;
    let realm = format!("http://{}/token", tokens.host());
    let used = AtomicUsize::new(0);
    let registry = Server::plain(made.shelf("team/app", "1"), move |request| {
        let latest = issued.load(Ordering::SeqCst);
        let good = latest > 0 && authorized(request, &format!("Bearer t{}", latest - 1));
        if good && !used.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
            return None;
        }
        if good && latest == 1 {
            return None;
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="reg",scope="repository:team/app:pull""#);
        Some(Reply::status(401).header("WWW-Authenticate", challenge))
    })
    .await;
    (registry, tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_used_and_fetched_again_when_refused() {
    let made = Image::of_sizes(2, &[1000, 1000, 1000]);
    let (registry, tokens) = with_tokens(&made, |_| None).await;
    Node::new().pull(&format!("{}/team/app:1", registry.host())).await.unwrap();
    let asked = tokens.seen();
    assert!(!asked.is_empty() && asked.len() <= 4, "{asked:?}");
    assert!(
        asked.iter().all(|request| request.query == "service=reg&scope=repository%3Ateam%2Fapp%3Apull"),
        "{asked:?}"
    );
    assert!(asked.iter().all(|request| request.header("authorization").is_none()), "an anonymous pull shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_credential_is_shown_in_its_own_way() {
    let made = Image::simple(3);
    let name = |registry: &Server| format!("{}/team/app:1", registry.host());

    let (registry, tokens) =
        with_tokens(&made, |request| (!authorized(request, BASIC)).then(|| Reply::status(401))).await;
    let text = Node::new().refuse_as(&name(&registry), Some(password("user", "bad"))).await;
    assert!(
        text.contains("access denied")
            && text.contains("token from http://")
            && text.contains("credentials were refused"),
        "{text}"
    );
    Node::new().pull_as(&name(&registry), Some(password("user", "secret"))).await.unwrap();
    assert!(tokens.seen().iter().all(|request| request.query.ends_with("&account=user")), "{:?}", tokens.seen());
    assert!(
        registry.seen().iter().all(|request| !authorized(request, BASIC)),
        "the password goes to the token server only"
    );

    let identity = Credentials { identity_token: "refresh&me".into(), ..Credentials::default() };
    let (registry, tokens) = with_tokens(&made, |request| (request.method != "POST").then(|| Reply::status(401))).await;
    Node::new().pull_as(&name(&registry), Some(identity)).await.unwrap();
    let body = &tokens.seen()[0].body;
    assert!(body.contains("grant_type=refresh_token") && body.contains("refresh_token=refresh%26me"), "{body}");

    let registry = Server::plain(made.shelf("team/app", "1"), |request| {
        let challenge = Reply::status(401).header("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/x\"");
        (!authorized(request, "Bearer ready")).then_some(challenge)
    })
    .await;
    let ready = Credentials { registry_token: "ready".into(), ..Credentials::default() };
    Node::new().pull_as(&name(&registry), Some(ready)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_that_misbehaves_is_an_error_with_its_name() {
    let made = Image::simple(4);
    let table: Vec<(Reply, &str)> = vec![
        (Reply::ok("application/json", "{}"), "holds no token"),
        (Reply::ok("text/html", "<html>"), "is no token"),
        (Reply::ok("application/json", vec![b' '; 2 << 20]), "larger than"),
        (Reply::status(302).header("location", "http://127.0.0.1:1/"), "redirects are not followed"),
        (Reply::status(500), "500"),
        (Reply::ok("application/json", r#"{"token":"a\nb"}"#), "no header can hold"),
    ];
    for (reply, want) in table {
        let (registry, tokens) = with_tokens(&made, move |_| Some(reply.clone())).await;
        let text =
            Node::new().refuse_as(&format!("{}/team/app:1", registry.host()), Some(password("user", "secret"))).await;
        assert!(text.contains(want), "{want}: {text}");
        assert!(text.contains(&tokens.host()) || want.contains("header"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_host_carries_no_credential() {
    let made = Image::simple(5);
    let elsewhere = Server::plain(made.shelf("app", "1"), |_| None).await;
    let (target, home) = (elsewhere.host(), made.id().to_string());
    let registry = Server::plain(made.shelf("app", "1"), move |request| {
        if !authorized(request, BASIC) {
            return Some(Reply::status(401).header("www-authenticate", "Basic"));
        }
        // Blobs are moved; the config by way of our own host first.
        let path = &request.path;
        let location = match path.contains("/blobs/") && !request.query.contains("again") {
            true if path.contains(&home) => format!("{path}?again=1"),
            true => format!("http://{target}{path}?X-Signature=topsecret"),
            false if request.query.contains("again") => format!("//{target}{path}"),
            false => return None,
        };
        Some(Reply::status(307).header("location", location))
    })
    .await;
    let node = Node::new();
    node.hosts("registry.test", &format!("server = \"http://{}\"\n[header]\nx-corporate = \"key\"\n", registry.host()));
    node.pull_as("registry.test/app:1", Some(password("user", "secret"))).await.unwrap();
    let strangers = elsewhere.seen();
    assert_eq!(strangers.len(), 2, "{strangers:?}");
    for request in strangers {
        assert_eq!(request.header("authorization"), None, "{request:?}");
        assert_eq!(request.header("x-corporate"), None, "{request:?}");
        assert_eq!(request.header("referer"), None, "{request:?}");
    }
    assert!(registry.seen().iter().all(|request| request.header("x-corporate") == Some("key")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_from_a_redirect_target_is_not_answered() {
    let made = Image::simple(6);
    let thief = Server::plain(Shelf::new(), |_| Some(Reply::status(401).header("www-authenticate", "Basic"))).await;
    let target = thief.host();
    let registry = Server::plain(made.shelf("app", "1"), move |request| {
        let moved = request.path.contains("/blobs/");
        moved.then(|| Reply::status(302).header("location", format!("http://{target}/x?sig=topsecret")))
    })
    .await;
    let text = Node::new().refuse_as(&format!("{}/app:1", registry.host()), Some(password("user", "secret"))).await;
    assert!(thief.seen().iter().all(|request| request.header("authorization").is_none()));
    assert!(text.contains("401") && !text.contains("topsecret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_are_never_fetched() {
    let made = Image::simple(7);
    let thief = Server::plain(Shelf::new(), |_| None).await;
    let mut document: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
    let layer = &mut document["layers"][0];
    layer["urls"] = serde_json::json!([format!("http://{}/layer", thief.host())]);
    layer["mediaType"] = serde_json::json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    let body = document.to_string().into_bytes();
    let server = Server::plain(made.shelf("app", "x"), move |request| {
        request
            .path
            .contains("/manifests/")
            .then(|| Reply::ok("application/vnd.oci.image.manifest.v1+json", body.clone()))
    })
    .await;
    let text = Node::new().refuse_as(&format!("{}/app:1", server.host()), Some(password("user", "secret"))).await;
    assert!(text.contains("layers outside the registry are refused"), "{text}");
    assert!(thief.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_sees_only_credentials_that_are_its_own() {
    let made = Image::simple(8);
    let challenge = |request: &Request| {
        (request.header("authorization").is_none()).then(|| Reply::status(401).header("www-authenticate", "Basic"))
    };
    let origin = Server::plain(made.shelf("app", "1"), challenge).await;
    let mirror = Server::plain(made.shelf("app", "1"), challenge).await;
    let hosts = |node: &Node| {
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", origin.host(), mirror.host());
        node.hosts("registry.test", &text);
    };
    let node = Node::new();
    hosts(&node);
    node.pull_as("registry.test/app:1", Some(password("user", "secret"))).await.unwrap();
    assert!(mirror.seen().iter().all(|request| request.header("authorization").is_none()), "{:?}", mirror.seen());
    assert!(origin.seen().iter().any(|request| authorized(request, BASIC)));

    origin.forget();
    let node = Node::new();
    hosts(&node);
    let named = Credentials { server_address: format!("http://{}/", mirror.host()), ..password("user", "secret") };
    node.pull_as("registry.test/app:1", Some(named)).await.unwrap();
    assert!(mirror.seen().iter().any(|request| authorized(request, BASIC)));
    assert!(origin.seen().is_empty());

    // Said to be for a host that has no part in this pull: shown to nobody, and the error says so.
    mirror.forget();
    let node = Node::new();
    hosts(&node);
    let other = Credentials { server_address: "https://elsewhere.test".into(), ..password("user", "secret") };
    let text = node.refuse_as("registry.test/app:1", Some(other)).await;
    assert!(
        text.contains("credentials were withheld") && text.contains(&mirror.host()) && text.contains(&origin.host()),
        "{text}"
    );
    let all = mirror.seen().into_iter().chain(origin.seen());
    assert!(all.into_iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_without_the_right_does_not_profit_from_one_with_it() {
    let made = Image::of_sizes(9, &[100_000]);
    let blob = digest(&made.layers[0].blob).to_string();
    let server = Server::plain(made.shelf("app", "1"), move |request| {
        if !authorized(request, BASIC) {
            return Some(Reply::status(401).header("www-authenticate", "Basic"));
        }
        let slow = Reply {
            drip: Some((20_000, std::time::Duration::from_millis(50))),
            ..Reply::ok("application/octet-stream", Image::of_sizes(9, &[100_000]).layers[0].blob.clone())
        };
        request.path.contains(&blob).then_some(slow)
    })
    .await;
    let node = Node::new();
    let name = format!("{}/app:1", server.host());
    let (with, without) = tokio::join!(node.pull_as(&name, Some(password("user", "secret"))), node.pull(&name));
    assert_eq!(with.unwrap().id, made.id());
    assert!(super::chain(&without.unwrap_err()).contains("access denied"));
    // Nor afterwards: what is here is asked about again.
    assert!(node.pull(&name).await.is_err());
}
