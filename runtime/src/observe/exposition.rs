//! Prometheus' text exposition format, version 0.0.4: families, labels, histograms.
//! Pure text on the worker that answers a scrape. Owns the page being written. Must never write a family twice.

use std::fmt::{Display, Write as _};

use super::number::{BOUNDS_US, Reading};

/// What the answer's `content-type` says.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of numbers a family has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Only a sum and a count.
    Summary,
}

/// Labels of one sample.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page being written.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        };
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { page: self, name }
    }

    /// A family of one number without labels.
    pub(super) fn single(&mut self, name: &'static str, kind: Kind, help: &'static str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(text);
    }
}

/// A family whose samples are being written.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Family<'_> {
    /// One sample.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, None, value)
    }

    /// One histogram.
    pub(super) fn histogram(&mut self, labels: Labels<'_>, reading: &Reading) -> &mut Self {
        let mut count = 0;
        for (bound, bucket) in BOUNDS_US.iter().zip(&reading.buckets) {
            count += bucket;
            self.line("_bucket", labels, Some(&seconds(*bound)), count);
        }
        self.line("_bucket", labels, Some("+Inf"), reading.count());
        self.sum(labels, reading.sum.as_secs_f64(), reading.count())
    }

    /// Sum and count of a summary or a histogram.
    pub(super) fn sum(&mut self, labels: Labels<'_>, sum: f64, count: u64) -> &mut Self {
        self.line("_sum", labels, None, sum).line("_count", labels, None, count)
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, le: Option<&str>, value: impl Display) -> &mut Self {
        let name = self.name;
        self.page.write(format_args!("{name}{suffix}"));
        let mut open = '{';
        for (label, text) in labels.iter().copied().chain(le.map(|le| ("le", le))) {
            self.page.write(format_args!("{open}{label}=\"{}\"", escaped(text)));
            open = ',';
        }
        let close = if open == ',' { "}" } else { "" };
        self.page.write(format_args!("{close} {value}\n"));
        self
    }
}

/// Microseconds as seconds, exactly and as short as can be: `0.0001`, `2.5`, `60`.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::number::Histogram;

    #[test]
    fn a_page_reads_as_the_format_has_it() {
        let mut page = Page::default();
        page.single("up", Kind::Gauge, "Whether it is.", 1);
        page.family("runs_total", Kind::Counter, "Runs.")
            .sample(&[("how", "a\"b\\c\nd")], 7)
            .sample(&[("how", ""), ("x", "y")], 0);
        assert_eq!(
            page.into_text(),
            "# HELP up Whether it is.\n# TYPE up gauge\nup 1\n\
             # HELP runs_total Runs.\n# TYPE runs_total counter\nruns_total{how=\"a\\\"b\\\\c\\nd\"} 7\nruns_total{how=\"\",x=\"y\"} 0\n"
        );
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_everything() {
        let histogram = Histogram::new();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_millis(700));
        histogram.observe(Duration::from_secs(1000));
        let mut page = Page::default();
        page.family("took_seconds", Kind::Histogram, "Time.").histogram(&[("a", "b")], &histogram.read());
        let text = page.into_text();
        for line in [
            "took_seconds_bucket{a=\"b\",le=\"0.0025\"} 0",
            "took_seconds_bucket{a=\"b\",le=\"0.005\"} 1",
            "took_seconds_bucket{a=\"b\",le=\"1\"} 2",
            "took_seconds_bucket{a=\"b\",le=\"300\"} 2",
            "took_seconds_bucket{a=\"b\",le=\"+Inf\"} 3",
            "took_seconds_sum{a=\"b\"} 1000.703",
            "took_seconds_count{a=\"b\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
