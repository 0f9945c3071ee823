//! H11: critest's own clock, serially and four specs at a time, and its five benchmarks.
//! The contenders take turns: the suite wants the whole machine, its ports and its cgroups for itself.

use anyhow::Result;

use super::{
    Options, Table,
    daemons::{Contender, start_all},
};
use crate::{
    critest::{Run, Suite},
    images::Store,
};

/// The suite's benchmarks: so many containers, so many pods.
const CONTAINERS: usize = 100;
const PODS: usize = 200;

pub(super) fn h11(options: &Options, table: &mut Table) -> Result<()> {
    Store::open()?.build("")?;
    let suite = Suite::open()?;
    for only in super::daemons::NAMES.into_iter().filter(|name| name.contains(&options.contender)) {
        for contender in start_all(only)? {
            measure(&suite, &contender, table)?;
        }
    }
    Ok(())
}

fn measure(suite: &Suite, contender: &Contender, table: &mut Table) -> Result<()> {
    let endpoint = contender.endpoint();
    for (name, parallel) in [("H11 critest, serial", 1), ("H11 critest, 4 at a time", 4)] {
        // The same order for everybody.
        let report = suite.run(&endpoint, &Run { parallel, seed: Some(1), ..Run::default() })?;
        println!("{name}, {}: {report}", contender.name);
        for (spec, why) in &report.failed {
            println!("  failed: {spec}: {}", why.lines().next().unwrap_or_default());
        }
        table.add(name, contender.name, "s", vec![report.seconds], None);
    }
    for series in suite.benchmarks(&endpoint, CONTAINERS, PODS)? {
        table.add(&format!("H11 {}", series.name), contender.name, "ms", series.samples, None);
    }
    Ok(())
}
