//! Benchmarks against the peers, interleaved in one run: H1, H3, H4, H5, H8, H10, H11 of the project's targets,
//! and what being looked at costs.
//! Runs in the `keelson-e2e` tool on release builds, as root. Owns the daemons it starts and their scratch folders.
//! Must report ratios, with min, p50, p99, CPU time and a floor beside; must never assert a time.

mod daemons;
mod density;
mod figures;
mod memory;
mod oci;
mod pods;
mod seeing;
mod suite;

use anyhow::Result;
use serde_json::json;

pub use figures::{Figure, Table};
pub use oci::lives as oci_lives;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only this figure: h1, h3, h4, h5, h8, seeing, h10, h11.
    #[arg(default_value = "")]
    pub only: String,
    /// Rounds: in each, every contender has its turn.
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
    /// Operations of one contender in one round.
    #[arg(long, default_value_t = 20)]
    pub operations: usize,
    /// Only contenders whose name contains this.
    #[arg(long, default_value = "")]
    pub contender: String,
    /// Idle pods for the figures of memory and of density.
    #[arg(long, default_value_t = 50)]
    pub pods: usize,
}

/// Runs what is asked and prints the table and one line of JSON.
pub fn run(options: &Options) -> Result<()> {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // Clients are made inside, though not always on it.
    let _inside = tokio.enter();
    let mut table = Table::default();
    let wants = |name: &str| options.only.is_empty() || name == options.only;
    if wants("h3") {
        oci::h3(options, &mut table)?;
    }
    if ["h1", "h4", "h5", "h8", "h10"].iter().any(|h| wants(h)) {
        let mut contenders = daemons::start_all(&options.contender)?;
        tokio.block_on(async {
            if wants("h1") || wants("h8") {
                pods::h1_h8(options, &mut contenders, &mut table).await?;
            }
            if wants("h4") {
                pods::h4(options, &mut contenders, &mut table).await?;
            }
            if wants("h5") {
                memory::h5(options, &mut contenders, &mut table).await?;
            }
            if wants("h10") {
                density::h10(options, &mut contenders, &mut table).await?;
            }
            anyhow::Ok(())
        })?;
    }
    if wants("seeing") {
        tokio.block_on(seeing::h1(options, &mut table))?;
    }
    if wants("h11") {
        suite::h11(options, &mut table)?;
    }
    println!("{table}");
    println!("{}", json!({ "machine": figures::machine(), "figures": table.figures }));
    Ok(())
}
