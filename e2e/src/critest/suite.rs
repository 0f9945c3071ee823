//! The suite's binary: runs it against an endpoint and reads its report.
//! Owns a patched copy of the binary and a scratch folder.
//! Must say what it changed: one spec pulls an image by a digest that only the internet has; the copy asks for ours.

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::images::Store;

/// The digest that v1.36.0 asks for by name.
const FOREIGN: &str = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

/// One run of the validation specs.
#[derive(Debug, Clone)]
pub struct Run {
    /// Specs at once; 1: serially.
    pub parallel: usize,
    /// Only specs that match this regular expression; empty: all.
    pub focus: String,
    /// Streaming over WebSocket instead of SPDY.
    pub websocket: bool,
    /// Order of the specs; `None`: random.
    pub seed: Option<u64>,
    /// Pass critest's output on.
    pub verbose: bool,
}

impl Default for Run {
    fn default() -> Self {
        Self { parallel: 1, focus: String::new(), websocket: false, seed: None, verbose: false }
    }
}

/// What a run came to. Specs that were not selected are in none of the lists.
#[derive(Debug, Default)]
pub struct Report {
    /// How many specs passed.
    pub passed: usize,
    /// Name and message.
    pub failed: Vec<(String, String)>,
    /// Name and reason.
    pub skipped: Vec<(String, String)>,
    /// Wall time of the whole run.
    pub seconds: f64,
    /// What critest printed.
    pub output: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        write!(f, "{} passed, {failed} failed, {skipped} skipped, {:.1} s", self.passed, self.seconds)
    }
}

/// Durations of one operation of one of the suite's benchmarks.
#[derive(Debug)]
pub struct Series {
    /// Benchmark and operation, as the suite names them.
    pub name: String,
    /// Milliseconds, in the order they were taken.
    pub samples: Vec<f64>,
}

/// The suite, ready to run.
pub struct Suite {
    binary: PathBuf,
    tools: PathBuf,
    scratch: TempDir,
}

impl Suite {
    /// Makes the copy of the binary.
    ///
    /// # Errors
    /// The tools or the images have not been built.
    pub fn open() -> Result<Self> {
        let tools = crate::cache::dir().join("cri-tools-v1.36.0");
        let scratch = tempfile::tempdir_in("/var/tmp")?;
        let binary = patched(&tools.join("critest"), scratch.path())?;
        stand_in_for_sudo(scratch.path())?;
        Ok(Self { binary, tools, scratch })
    }

    /// Runs the validation specs against the runtime at this endpoint, in random order.
    ///
    /// # Errors
    /// The suite could not run or left no report. A spec that fails is in the report.
    pub fn run(&self, endpoint: &str, run: &Run) -> Result<Report> {
        let path = self.scratch.path().join("report.json");
        let _ = fs::remove_file(&path);
        let mut command = self.command(endpoint);
        command.arg(format!("--ginkgo.json-report={}", path.display())).arg("--ginkgo.randomize-all");
        if let Some(seed) = run.seed {
            command.arg(format!("--ginkgo.seed={seed}"));
        }
        if run.parallel > 1 {
            command.arg(format!("--parallel={}", run.parallel));
        }
        if !run.focus.is_empty() {
            command.arg(format!("--ginkgo.focus={}", run.focus));
        }
        if run.websocket {
            command.args(["--websocket-exec", "--websocket-attach", "--websocket-portforward"]);
        }
        if run.verbose {
            command.arg("--ginkgo.v");
        }
        let (success, output, seconds) = self.finish(&mut command, run.verbose)?;
        let mut report = Report { seconds, output, ..read_report(&path)? };
        if !success && report.failed.is_empty() {
            report.failed.push(("the suite".into(), "ended with a failure, though no spec failed".into()));
        }
        Ok(report)
    }

    /// Runs the suite's five benchmarks with so many containers and pods, one at a time.
    ///
    /// # Errors
    /// One of them failed or left no samples.
    pub fn benchmarks(&self, endpoint: &str, containers: usize, pods: usize) -> Result<Vec<Series>> {
        let results = self.scratch.path().join("results");
        let _ = fs::remove_dir_all(&results);
        fs::create_dir(&results)?;
        let params = self.scratch.path().join("params.yaml");
        fs::write(
            &params,
            format!(
                "containersNumber: {containers}\ncontainersNumberParallel: 1\npodsNumber: {pods}\npodsNumberParallel: 1\n"
            ),
        )?;
        let mut command = self.command(endpoint);
        command.arg("--benchmark").arg(format!("--benchmarking-params-file={}", params.display()));
        command.arg(format!("--benchmarking-output-dir={}", results.display()));
        let (success, output, _) = self.finish(&mut command, false)?;
        ensure!(success, "critest's benchmarks failed:\n{output}");
        let mut all = Vec::new();
        let mut files: Vec<_> = fs::read_dir(&results)?.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            all.extend(series(&name, &serde_json::from_slice(&fs::read(&file)?)?));
        }
        ensure!(!all.is_empty(), "critest's benchmarks left no results");
        Ok(all)
    }

    fn command(&self, endpoint: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg(format!("--runtime-endpoint={endpoint}"))
            .current_dir(self.scratch.path())
            // A parallel run leaves a folder where its temporary files go.
            .env("TMPDIR", self.scratch.path())
            .env("PATH", self.path())
            .stdin(Stdio::null());
        command
    }

    /// The host's programs come first: what is in the scratch folder stands in for what it lacks.
    fn path(&self) -> String {
        let hosts = std::env::var("PATH").unwrap_or_default();
        format!("{}:{hosts}:{}", self.tools.display(), self.scratch.path().display())
    }

    fn finish(&self, command: &mut Command, show: bool) -> Result<(bool, String, f64)> {
        let begun = Instant::now();
        let output = command.output().with_context(|| format!("run `{}`", self.binary.display()))?;
        let seconds = begun.elapsed().as_secs_f64();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if show {
            std::io::stdout().write_all(text.as_bytes())?;
        }
        Ok((output.status.success(), text, seconds))
    }
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

/// The AppArmor specs load their profiles with `sudo apparmor_parser`; the suite runs as root anyway, and minimal systems have no sudo.
fn stand_in_for_sudo(scratch: &Path) -> Result<()> {
    let path = scratch.join("sudo");
    fs::write(&path, "#!/bin/sh\nexec \"$@\"\n")?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

fn read_report(path: &Path) -> Result<Report> {
    let suites: Value = serde_json::from_slice(&fs::read(path).context("critest wrote no report")?)?;
    let mut report = Report::default();
    for spec in suites.as_array().into_iter().flatten().filter_map(|s| s["SpecReports"].as_array()).flatten() {
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
        let outer = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let name: Vec<_> = outer.chain(spec["LeafNodeText"].as_str()).collect();
        let is_spec = spec["LeafNodeType"] == "It";
        match spec["State"].as_str().unwrap_or_default() {
            "passed" => report.passed += usize::from(is_spec),
            // Not selected: focus, or the benchmarks.
            "skipped" if message.is_empty() => {}
            "pending" | "skipped" => report.skipped.push((name.join(" "), message)),
            // A set-up step of the suite may fail too.
            _ => report.failed.push((name.join(" "), message)),
        }
    }
    Ok(report)
}

/// The samples of one result file: one series per operation, in milliseconds.
fn series(file: &str, results: &Value) -> Vec<Series> {
    let operations = results["operationsNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let points = || results["datapoints"].as_array().into_iter().flatten();
    operations
        .enumerate()
        .map(|(i, operation)| Series {
            name: format!("{file} {operation}"),
            samples: points().filter_map(|p| p["operationsDurationsNs"][i].as_f64()).map(|ns| ns / 1e6).collect(),
        })
        .collect()
}
