//! A strict reader of Prometheus' text exposition format 0.0.4: what a lenient scraper would forgive fails here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

type Labels = Vec<(String, String)>;
/// Name with sorted labels.
type Series = (String, Labels);

/// A page that has been read whole.
#[derive(Debug)]
pub(crate) struct Page {
    samples: BTreeMap<Series, f64>,
}

#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    samples: Vec<(Series, f64)>,
}

impl Page {
    pub(crate) fn parse(text: &str) -> Result<Page> {
        ensure!(text.ends_with('\n'), "the last line ends with a line feed");
        let mut seen = BTreeSet::new();
        let mut samples = BTreeMap::new();
        let mut family = Family::default();
        let mut help = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family.check().with_context(|| format!("before `{line}`"))?;
                let (name, text) = rest.split_once(' ').context("HELP without text")?;
                ensure!(!text.trim().is_empty() && seen.insert(name.to_owned()), "second family `{name}`");
                help = Some(name.to_owned());
                family = Family { name: name.to_owned(), ..Family::default() };
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("TYPE without kind")?;
                ensure!(help.as_deref() == Some(name) && family.samples.is_empty(), "TYPE of another family: {line}");
                ensure!(matches!(kind, "counter" | "gauge" | "histogram" | "summary"), "{line}");
                ensure!(kind != "counter" || name.ends_with("_total"), "{line}");
                ensure!(family.kind.is_empty(), "second TYPE: {line}");
                kind.clone_into(&mut family.kind);
            } else {
                let (series, value) = sample(line).with_context(|| format!("read `{line}`"))?;
                ensure!(!family.kind.is_empty() && family.takes(&series.0), "`{line}` in family `{}`", family.name);
                ensure!(samples.insert(series.clone(), value).is_none(), "twice: {line}");
                family.samples.push((series, value));
            }
        }
        family.check()?;
        Ok(Page { samples })
    }

    /// The sample of this name which has at least these labels, if there is one only.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |series: &Series| {
            series.0 == name
                && labels.iter().all(|(key, value)| series.1.iter().any(|one| one.0 == *key && one.1 == *value))
        };
        let mut found = self.samples.iter().filter(|(series, _)| has(series));
        let (_, value) = found.next()?;
        found.next().is_none().then_some(*value)
    }

    pub(crate) fn has_label_value(&self, text: &str) -> bool {
        self.samples.keys().any(|(_, labels)| labels.iter().any(|(_, value)| value.contains(text)))
    }
}

impl Family {
    fn takes(&self, name: &str) -> bool {
        let suffixes: &[&str] = match self.kind.as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["", "_sum", "_count"],
            _ => &[""],
        };
        suffixes.iter().any(|suffix| name == format!("{}{suffix}", self.name))
    }

    fn check(&self) -> Result<()> {
        for ((name, labels), value) in &self.samples {
            ensure!(self.kind == "gauge" || *value >= 0.0, "{name}{labels:?} is {value}");
        }
        if self.kind != "histogram" {
            return Ok(());
        }
        let mut by_labels: BTreeMap<Labels, Vec<(&str, f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            let le = labels.iter().find(|(key, _)| key == "le").map(|(_, bound)| bound.clone());
            let others = labels.iter().filter(|(key, _)| key != "le").cloned().collect();
            let suffix = name.strip_prefix(&self.name).context("suffix")?;
            ensure!((suffix == "_bucket") == le.is_some(), "{name} {labels:?}");
            let le = le.map_or(Ok(f64::NAN), |le| number(&le))?;
            by_labels.entry(others).or_default().push((suffix, le, *value));
        }
        for (labels, lines) in by_labels {
            let buckets: Vec<_> = lines.iter().filter(|line| line.0 == "_bucket").collect();
            ensure!(buckets.windows(2).all(|pair| pair[0].1 < pair[1].1), "{labels:?}: bounds do not grow");
            ensure!(buckets.windows(2).all(|pair| pair[0].2 <= pair[1].2), "{labels:?}: counts are not cumulative");
            let last = buckets.last().context("no buckets")?;
            let count = lines.iter().find(|line| line.0 == "_count").context("no count")?;
            ensure!(last.1 == f64::INFINITY && last.2 == count.2, "{labels:?}: +Inf is not the count");
            ensure!(lines.iter().filter(|line| line.0 == "_sum").count() == 1, "{labels:?}: no sum");
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        _ => {
            ensure!(text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte)), "number `{text}`");
            Ok(text.parse()?)
        }
    }
}

fn name(text: &str) -> Result<String> {
    let first = text.bytes().next().context("empty name")?;
    ensure!(first.is_ascii_alphabetic() || first == b'_', "name `{text}`");
    ensure!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "name `{text}`");
    Ok(text.to_owned())
}

/// `name{label="text",..} value`, exactly one blank, no timestamp.
fn sample(line: &str) -> Result<(Series, f64)> {
    let (head, value) = line.rsplit_once(' ').context("no value")?;
    let value = number(value)?;
    let Some((metric, rest)) = head.split_once('{') else { return Ok(((name(head)?, Vec::new()), value)) };
    let mut rest = rest.strip_suffix('}').context("no closing brace")?;
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, tail) = rest.split_once("=\"").context("no text")?;
        let mut text = String::new();
        let mut letters = tail.char_indices();
        let end = loop {
            match letters.next().context("no closing quote")? {
                (at, '"') => break at,
                (_, '\\') => match letters.next().context("nothing escaped")?.1 {
                    '\\' => text.push('\\'),
                    '"' => text.push('"'),
                    'n' => text.push('\n'),
                    other => bail!("escape \\{other}"),
                },
                (_, letter) => text.push(letter),
            }
        };
        labels.push((name(label)?, text));
        rest = &tail[end + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').context("no comma")?;
            ensure!(!rest.is_empty(), "nothing after the comma");
        }
    }
    labels.sort();
    ensure!(labels.windows(2).all(|pair| pair[0].0 != pair[1].0), "a label twice");
    Ok(((name(metric)?, labels), value))
}

#[test]
fn the_reader_refuses_what_is_wrong() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\"} 1\na_total{x=\"\",y=\"2\"} 1e3\n\
        # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"0.1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 0.5\nh_count 2\n";
    let page = Page::parse(good).unwrap();
    assert_eq!(page.value("a_total", &[("y", "2")]), Some(1000.0));
    for (from, to) in [
        ("a_total counter", "a_total counted"),
        ("# TYPE a_total", "# TYPE b_total"),
        ("} 1e3", "} 1e3 5"),
        ("} 1e3", "} one"),
        ("} 1e3", "}  1"),
        ("y=\"2\"", "y=\"2\","),
        ("y=\"2\"", "x=\"2\""),
        ("x=\"\",y=\"2\"", "x=\"q\\\"\\\\\\n\""),
        ("le=\"0.1\"} 1", "le=\"0.1\"} 3"),
        ("h_count 2", "h_count 3"),
        ("h_sum 0.5\n", ""),
        ("le=\"+Inf\"", "le=\"7\""),
        ("# HELP h H.", "# HELP a_total H."),
        ("h_sum", "g_sum"),
        ("h_count 2\n", "h_count 2"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(Page::parse(&good.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}
