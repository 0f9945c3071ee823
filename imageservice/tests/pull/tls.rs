//! Certificates: private CAs, client certificates, names, and the way between https and http.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use std::sync::Arc;
use tokio_rustls::rustls::{
    self,
    pki_types::{CertificateDer, PrivateKeyDer},
};

use super::{
    Node,
    image::Image,
    password,
    server::{Reply, Server, Shelf},
};

/// A CA of one test.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate it has issued, and its key.
struct Issued {
    cert: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self, name: &str) -> Issued {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Issued { cert, key }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server with a certificate for 127.0.0.1; with `clients`, only for clients that the CA knows.
    fn server(&self, clients: bool) -> rustls::ServerConfig {
        let Issued { cert, key } = self.issue("127.0.0.1");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
        builder.with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap()
    }
}

fn put(node: &Node, host: &str, name: &str, text: &str) {
    std::fs::write(node.temp.path().join("certs.d").join(host).join(name), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_is_trusted_only_where_it_is_given() {
    let authority = Authority::new("private");
    let made = Image::simple(1);
    let server = Server::tls(made.shelf("app", "1"), authority.server(false), |_| None).await;
    let node = Node::new();
    node.hosts("r.test", &format!("server = \"https://{}\"\n", server.host()));
    let text = node.refuse("r.test/app:1").await;
    assert!(text.contains("UnknownIssuer") || text.contains("unknown issuer"), "{text}");
    assert!(text.contains("give the registry's CA in `ca` of hosts.toml"), "{text}");
    assert!(server.seen().is_empty());

    node.hosts("r.test", &format!("server = \"https://{}\"\nca = \"ca.pem\"\n", server.host()));
    put(&node, "r.test", "ca.pem", &authority.pem());
    assert_eq!(node.pull("r.test/app:1").await.unwrap().id, made.id());

    let node = Node::new();
    node.hosts("r.test", &format!("server = \"https://{}\"\nskip_verify = true\n", server.host()));
    node.pull("r.test/app:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_laid_out_as_docker_has_it_are_found() {
    let authority = Authority::new("docker style");
    let made = Image::simple(2);
    let server = Server::tls(made.shelf("app", "1"), authority.server(true), |_| None).await;
    let node = Node::new();
    let host = server.host();
    std::fs::create_dir_all(node.temp.path().join("certs.d").join(&host)).unwrap();
    put(&node, &host, "ca.crt", &authority.pem());
    let text = node.refuse(&format!("{host}/app:1")).await;
    assert!(text.contains("https://") && !text.contains("http://"), "certificates mean TLS: {text}");
    let client = authority.issue("client");
    put(&node, &host, "me.cert", &client.cert.pem());
    put(&node, &host, "me.key", &client.key.serialize_pem());
    node.pull(&format!("{host}/app:1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_to_its_endpoint() {
    let authority = Authority::new("mutual");
    let made = Image::simple(3);
    let server = Server::tls(made.shelf("app", "1"), authority.server(true), |_| None).await;
    let node = Node::new();
    let text =
        format!("server = \"https://{}\"\nca = \"ca.pem\"\nclient = [[\"me.pem\", \"me.key\"]]\n", server.host());
    node.hosts("r.test", &text);
    put(&node, "r.test", "ca.pem", &authority.pem());
    let client = authority.issue("client");
    put(&node, "r.test", "me.pem", &client.cert.pem());
    let text = node.refuse("r.test/app:1").await;
    assert!(text.contains("me.key") && text.contains("no such file"), "{text}");
    put(&node, "r.test", "me.key", &client.key.serialize_pem());
    node.pull("r.test/app:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loopback_registry_may_speak_either() {
    let authority = Authority::new("loopback");
    let made = Image::simple(4);
    let server = Server::tls(made.shelf("app", "1"), authority.server(false), |_| None).await;
    let node = Node::new();
    let name = format!("{}/app:1", server.host());
    // Found out by itself that TLS is spoken; the certificate is still held to account.
    let text = node.refuse(&name).await;
    assert!(text.contains(&format!("https://{}", server.host())) && text.contains("`ca` of hosts.toml"), "{text}");
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leads_from_https_to_http() {
    let authority = Authority::new("downgrade");
    let made = Image::simple(5);
    let thief =
        Server::plain(made.shelf("app", "1"), |_| Some(Reply::ok("application/json", r#"{"token":"x"}"#))).await;
    let stolen = thief.host();
    let redirect = {
        let stolen = stolen.clone();
        Server::tls(made.shelf("app", "1"), authority.server(false), move |request| {
            let moved = request.path.contains("/blobs/");
            moved.then(|| Reply::status(307).header("location", format!("http://{stolen}{}", request.path)))
        })
        .await
    };
    let realm = Server::tls(Shelf::new(), authority.server(false), move |_| {
        Some(
            Reply::status(401)
                .header("www-authenticate", format!("Bearer realm=\"http://{stolen}/token\",service=\"s\"")),
        )
    })
    .await;
    for (server, want) in [(redirect, "leads from https to http"), (realm, "token server on http")] {
        let node = Node::new();
        node.hosts("r.test", &format!("server = \"https://{}\"\nca = \"ca.pem\"\n", server.host()));
        put(&node, "r.test", "ca.pem", &authority.pem());
        let text = node.refuse_as("r.test/app:1", Some(password("user", "secret"))).await;
        assert!(text.contains(want), "{want}: {text}");
    }
    assert!(thief.seen().is_empty(), "{:?}", thief.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_does_not_follow_a_redirect() {
    let authority = Authority::new("identity");
    let made = Image::simple(6);
    // The other host insists on a client certificate, so it would see one.
    let elsewhere = Server::tls(made.shelf("app", "1"), authority.server(true), |_| None).await;
    let target = elsewhere.host();
    let server = Server::tls(made.shelf("app", "1"), authority.server(true), move |request| {
        let moved = request.path.contains("/blobs/");
        moved.then(|| Reply::status(307).header("location", format!("https://{target}{}", request.path)))
    })
    .await;
    let node = Node::new();
    let text = format!("server = \"https://{}\"\nca = \"ca.pem\"\nclient = \"me.pem\"\n", server.host());
    node.hosts("r.test", &text);
    put(&node, "r.test", "ca.pem", &authority.pem());
    let client = authority.issue("client");
    put(&node, "r.test", "me.pem", &format!("{}{}", client.cert.pem(), client.key.serialize_pem()));
    let text = node.refuse("r.test/app:1").await;
    assert!(
        text.contains("CertificateRequired") || text.contains("certificate required") || text.contains("unavailable"),
        "{text}"
    );
    assert!(elsewhere.seen().is_empty());
    assert!(!server.seen().is_empty());
}
