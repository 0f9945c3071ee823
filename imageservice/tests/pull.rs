//! Pulls from registries on loopback, honest and hostile, through the public API of the image service.
//! Each test has its own store in a temporary folder and its own servers. Owns nothing beyond the test.
//! Must never reach past 127.0.0.1.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "pull/auth.rs"]
mod auth;
#[path = "pull/basics.rs"]
mod basics;
#[path = "registry/image.rs"]
mod image;
#[path = "pull/mirrors.rs"]
mod mirrors;
#[path = "registry/server.rs"]
mod server;
#[path = "pull/sharing.rs"]
mod sharing;
#[path = "pull/tls.rs"]
mod tls;
#[path = "pull/transfer.rs"]
mod transfer;

use std::{path::Path, sync::Arc, time::Duration};

use keelson_imageservice::{
    Config, Image, ImageService, Platform, PullError, PullRequest,
    registry::{Credentials, Timing},
};

/// An image service with its own store and its own `hosts.toml` tree.
struct Node {
    temp: tempfile::TempDir,
    service: Arc<ImageService>,
}

impl Node {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut config = Config {
            root: temp.path().join("store"),
            hosts_dir: temp.path().join("certs.d"),
            platform: Platform { os: "linux".into(), architecture: "amd64".into(), variant: None },
            ..Config::default()
        };
        change(&mut config);
        let service = Arc::new(ImageService::open(config).unwrap());
        service.set_registry_timing(Timing {
            answer: Duration::from_secs(5),
            window: Duration::from_millis(400),
            floor: 1000,
            backoff: Duration::from_millis(5),
            retry_after: Duration::from_secs(2),
        });
        Self { temp, service }
    }

    /// Writes `hosts.toml` for a registry.
    fn hosts(&self, host: &str, text: &str) {
        let dir = self.temp.path().join("certs.d").join(host);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    async fn pull(&self, name: &str) -> Result<Arc<Image>, PullError> {
        self.pull_as(name, None).await
    }

    async fn pull_as(&self, name: &str, credentials: Option<Credentials>) -> Result<Arc<Image>, PullError> {
        let reference = name.parse().unwrap();
        // Nothing in these tests takes longer; a hang is a failure.
        let pull = self.service.pull(PullRequest { reference, credentials });
        tokio::time::timeout(Duration::from_secs(60), pull).await.expect("the pull hangs")
    }

    /// The error of a pull that must fail, with its sources, on one line; and that nothing is left of it.
    async fn refuse(&self, name: &str) -> String {
        self.refuse_as(name, None).await
    }

    async fn refuse_as(&self, name: &str, credentials: Option<Credentials>) -> String {
        let error = match self.pull_as(name, credentials).await {
            Ok(image) => panic!("{name} was pulled: {image:?}"),
            Err(error) => error,
        };
        assert!(self.service.list().is_empty());
        self.assert_clean();
        chain(&error)
    }

    /// Nothing half-made: no temporaries, no blob that no image names.
    fn assert_clean(&self) {
        let store = self.temp.path().join("store");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let left: Vec<_> = ["content/tmp", "layers/tmp", "images/tmp", "trash"]
                .iter()
                .flat_map(|dir| names(&store.join(dir)))
                .collect();
            if left.is_empty() {
                break;
            }
            // A blocking unpacker notices a little later that its transfer was given up.
            assert!(std::time::Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.service.list().is_empty() {
            assert_eq!(names(&store.join("content/sha256")), Vec::<String>::new(), "orphan blobs");
        }
    }
}

/// Waits until something is so.
async fn eventually(what: &str, is: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().map(|entry| entry.path().display().to_string()).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into(), ..Credentials::default() }
}
