//! Figures: samples to min, p50, p99, a ratio against the peer of the same run, CPU per operation, the floor.

use std::{fmt, fs, time::Duration};

use serde::Serialize;

/// One contender's samples of one figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    pub figure: String,
    pub contender: String,
    pub unit: &'static str,
    pub min: f64,
    pub p50: f64,
    pub p99: f64,
    /// CPU milliseconds of the whole machine per operation, where it was counted.
    pub cpu_ms: Option<f64>,
    pub samples: usize,
}

/// All figures of a run.
#[derive(Debug, Default, Serialize)]
pub struct Table {
    pub figures: Vec<Figure>,
}

/// Name of the row that says what the kernel alone takes.
pub(super) const FLOOR: &str = "floor";
/// Our own name: every other contender's p50 is divided by it.
pub(super) const OURS: &str = "keelson";

impl Table {
    /// Adds one contender's samples.
    pub(super) fn add(
        &mut self,
        figure: &str,
        contender: &str,
        unit: &'static str,
        mut samples: Vec<f64>,
        cpu: Option<Duration>,
    ) {
        samples.sort_by(f64::total_cmp);
        let at = |q: f64| {
            samples.get(((samples.len().saturating_sub(1)) as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
        };
        let cpu_ms = cpu.map(|cpu| cpu.as_secs_f64() * 1000.0 / samples.len().max(1) as f64);
        self.figures.push(Figure {
            figure: figure.into(),
            contender: contender.into(),
            unit,
            min: at(0.0),
            p50: at(0.5),
            p99: at(0.99),
            cpu_ms,
            samples: samples.len(),
        });
    }

    fn ours(&self, figure: &str) -> Option<f64> {
        self.figures.iter().find(|f| f.figure == figure && f.contender == OURS).map(|f| f.p50)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<34} {:<18} {:>9} {:>9} {:>9} {:<5} {:>9} {:>8}",
            "figure", "contender", "min", "p50", "p99", "unit", "CPU ms/op", "ratio"
        )?;
        for row in &self.figures {
            let cpu = row.cpu_ms.map_or_else(|| "-".into(), |c| format!("{c:.2}"));
            let ratio = match self.ours(&row.figure) {
                Some(ours) if row.contender != OURS && ours > 0.0 => {
                    let ratio = row.p50 / ours;
                    // Contenders that are nearly the same are told apart by the percent.
                    if (0.5..2.0).contains(&ratio) { format!("{ratio:.3}x") } else { format!("{ratio:.1}x") }
                }
                _ => "-".into(),
            };
            writeln!(
                f,
                "{:<34} {:<18} {:>9.3} {:>9.3} {:>9.3} {:<5} {:>9} {:>8}",
                row.figure, row.contender, row.min, row.p50, row.p99, row.unit, cpu, ratio
            )?;
        }
        write!(f, "ratio: a contender's p50 divided by keelson's, same run, interleaved")
    }
}

/// CPU time that the whole machine has spent, idle and waiting for disks aside.
pub(super) fn machine_cpu() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = text
        .lines()
        .next()
        .map(|line| {
            let numbers: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
            // user nice system - - irq softirq
            [0, 1, 2, 5, 6].iter().filter_map(|i| numbers.get(*i)).sum()
        })
        .unwrap_or_default();
    Duration::from_millis(ticks * 10)
}

/// What the figures were measured on.
pub(super) fn machine() -> serde_json::Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    serde_json::json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu_pressure": read("/proc/pressure/cpu").lines().next().unwrap_or_default(),
    })
}
