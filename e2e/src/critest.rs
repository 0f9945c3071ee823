//! The field's own suite, critest, against a node on scratch state, with images made from Debian packages.
//! Runs in the `keelson-e2e` tool, as root. Owns the node and a patched copy of the test binary.
//! Must say what it changed: one spec pulls an image by a digest that only the internet has; a copy of the binary asks for ours.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{images::Store, node::Node};

/// How to run the suite.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Specs at once; 1: serially.
    #[arg(long, default_value_t = 1)]
    pub parallel: usize,
    /// Only specs that match this regular expression.
    #[arg(long, default_value = "")]
    pub focus: String,
    /// Streaming over WebSocket instead of SPDY.
    #[arg(long)]
    pub websocket: bool,
    /// Print each spec.
    #[arg(long)]
    pub verbose: bool,
}

/// The digest that v1.36.0 asks for by name.
const FOREIGN: &str = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

/// Runs the suite and prints `N passed, N failed, N skipped` with each skip and its reason.
pub fn run(options: &Options) -> Result<()> {
    let tools = crate::cache::dir().join("cri-tools-v1.36.0");
    let node = Node::start()?;
    let scratch = tempfile::tempdir_in("/var/tmp")?;
    let binary = patched(&tools.join("critest"), scratch.path())?;
    let report = scratch.path().join("report.json");
    let endpoint = format!("unix://{}", node.socket().display());
    let mut command = Command::new(&binary);
    command
        .arg(format!("--runtime-endpoint={endpoint}"))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg("--ginkgo.skip=benchmark")
        .current_dir(scratch.path())
        .env("PATH", format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null());
    if options.parallel > 1 {
        command.arg(format!("--parallel={}", options.parallel));
    }
    if !options.focus.is_empty() {
        command.arg(format!("--ginkgo.focus={}", options.focus));
    }
    if options.websocket {
        command.args(["--websocket-exec", "--websocket-attach", "--websocket-portforward"]);
    }
    if options.verbose {
        command.arg("--ginkgo.v");
    }
    let begun = std::time::Instant::now();
    let output = command.output().with_context(|| format!("run `{}`", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    std::io::stdout().write_all(text.as_bytes())?;
    std::io::stderr().write_all(&output.stderr)?;
    summarise(&report, begun.elapsed().as_secs_f64())?;
    ensure!(
        output.status.success(),
        "critest ended with {}; the daemon's log ends:\n{}",
        output.status,
        node.log_tail()
    );
    Ok(())
}

/// A copy of the binary that asks for our image's digest where the original asks for one of the internet's.
fn patched(critest: &Path, scratch: &Path) -> Result<PathBuf> {
    let names = Store::open()?.names()?;
    let (ours, _) =
        names.get("k8s-staging-cri-tools/test-image-digest:latest").context("image critest-digest is not built")?;
    let mut bytes =
        fs::read(critest).with_context(|| format!("read `{}` (e2e/tools/build-cri-tools)", critest.display()))?;
    let at: Vec<usize> =
        bytes.windows(FOREIGN.len()).enumerate().filter(|(_, w)| *w == FOREIGN.as_bytes()).map(|(i, _)| i).collect();
    ensure!(!at.is_empty(), "the test binary does not hold the digest `{FOREIGN}`: another version?");
    for i in at {
        bytes[i..i + FOREIGN.len()].copy_from_slice(ours.as_bytes());
    }
    let copy = scratch.join("critest");
    fs::write(&copy, bytes)?;
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    println!(
        "critest: in a copy of the binary, the digest {FOREIGN} is replaced by {ours}: the original is on the internet only"
    );
    Ok(copy)
}

fn summarise(report: &Path, seconds: f64) -> Result<()> {
    let suites: serde_json::Value = serde_json::from_slice(&fs::read(report).context("critest wrote no report")?)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for spec in suites.as_array().into_iter().flatten().filter_map(|s| s["SpecReports"].as_array()).flatten() {
        if spec["LeafNodeType"] != "It" {
            continue;
        }
        let name = || {
            let outer = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(|t| t.as_str());
            let name: Vec<_> = outer.chain(spec["LeafNodeText"].as_str()).collect();
            name.join(" ")
        };
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
        match spec["State"].as_str().unwrap_or_default() {
            "passed" => passed += 1,
            // Not selected: focus, skip or the benchmark filter.
            "skipped" if message.is_empty() => {}
            "pending" | "skipped" => {
                skipped += 1;
                println!("SKIP {}: {message}", name());
            }
            _ => {
                failed += 1;
                println!("FAIL {}: {message}", name());
            }
        }
    }
    println!("{seconds:.1} s");
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(())
}
