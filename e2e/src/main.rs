//! `keelson-e2e`: builds test images, serves them on loopback, runs the benchmarks. For people and for the Makefile.

use anyhow::Result;
use clap::{Parser, Subcommand};
use keelson_e2e::{bench, critest, images::Store, registry::Registry};

/// Test images, a loopback registry, benchmarks.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the test images that are missing in the cache folder.
    Images {
        /// Only images whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Serve the built images as a registry on 127.0.0.1 until ended.
    Registry {
        /// Port; 0: a free one, printed.
        #[arg(long, default_value_t = 5000)]
        port: u16,
    },
    /// Compare with the peers: a table, then one line of JSON. Release builds: `make bench`.
    Bench(bench::Options),
    /// Run critest against a node on scratch state.
    Critest(critest::Options),
    /// Part of `bench`: lives of one OCI runtime, inside a mount namespace made for it.
    #[command(hide = true)]
    OciLives {
        tag: String,
        count: usize,
        bundle: std::path::PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Images { filter } => Store::open()?.build(&filter),
        Command::Registry { port } => {
            let registry = Registry::serve(Store::open()?, port)?;
            println!("serving on http://{}", registry.address());
            loop {
                std::thread::park();
            }
        }
        Command::Critest(options) => critest::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::OciLives { tag, count, bundle, command } => bench::oci_lives(&tag, count, &bundle, command),
    }
}
