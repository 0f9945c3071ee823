//! The field's own suite, critest, against a node on scratch state, with images made from Debian packages.
//! Runs in the `keelson-e2e` tool, as root. Owns the nodes it starts.
//! Must say of every spec that did not run why, and must fail when one fails.

mod suite;

use anyhow::{Result, ensure};

pub use suite::{Report, Run, Suite};

use crate::node::Node;

/// How to run the suite. Without options: all specs serially, all specs four at a time, the streaming specs over WebSocket.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// One run only, with this many specs at once.
    #[arg(long)]
    pub parallel: Option<usize>,
    /// One run only, of the specs that match this regular expression.
    #[arg(long)]
    pub focus: Option<String>,
    /// One run only, streaming over WebSocket instead of SPDY.
    #[arg(long)]
    pub websocket: bool,
    /// Order of the specs; by default another one in each run.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Everything so many times.
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Print what critest prints.
    #[arg(long)]
    pub verbose: bool,
}

impl Options {
    fn plan(&self) -> Vec<(&'static str, Run)> {
        let run = Run { seed: self.seed, verbose: self.verbose, ..Run::default() };
        if self.parallel.is_some() || self.focus.is_some() || self.websocket {
            let parallel = self.parallel.unwrap_or(1);
            let focus = self.focus.clone().unwrap_or_default();
            return vec![("as asked", Run { parallel, focus, websocket: self.websocket, ..run })];
        }
        vec![
            ("serial", run.clone()),
            ("parallel 4", Run { parallel: 4, ..run.clone() }),
            ("streaming over WebSocket", Run { focus: "Streaming".into(), websocket: true, ..run }),
        ]
    }
}

/// Runs the plan; for each run the skips with their reasons and a line `critest NAME: N passed, N failed, N skipped, SECONDS s`.
///
/// # Errors
/// A spec failed, or the suite could not run.
pub fn run(options: &Options) -> Result<()> {
    let suite = Suite::open()?;
    let mut failed = 0;
    for _ in 0..options.rounds {
        for (name, run) in options.plan() {
            let node = Node::start()?;
            let report = suite.run(&format!("unix://{}", node.socket().display()), &run)?;
            for (spec, why) in &report.skipped {
                println!("critest SKIP {spec}: {why}");
            }
            for (spec, why) in &report.failed {
                println!("critest FAIL {spec}: {why}");
            }
            if !report.failed.is_empty() {
                println!("{}\nthe daemon's log ends:\n{}", report.output, node.log_tail());
            }
            println!("critest {name}: {report}");
            failed += report.failed.len();
        }
    }
    ensure!(failed == 0, "{failed} specs of critest failed");
    Ok(())
}
