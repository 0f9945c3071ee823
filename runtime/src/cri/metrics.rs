//! Metrics in cAdvisor's names, so that dashboards made for kubelet's own go on working: what is declared, and its values now.
//! Pure, in any task of the daemon. Owns the labels; the names and what they are read from are in the tables below.
//! Must never declare what this host does not give: kubelet takes the declaration once, and fills gaps with nothing.

mod container;
mod network;
#[cfg(test)]
mod tests;

use keelson_cri::v1;

use crate::stats::{ContainerDetail, Counted, SandboxDetail};

/// The labels of every metric, before its own. `id` is the cgroup and `name` the container, as cAdvisor has it; for what belongs to
/// the whole pod `container` and `image` are empty, and `name` is the sandbox.
const BASE: [&str; 6] = ["pod", "namespace", "container", "id", "image", "name"];

/// One metric: how it is declared, and how it is read from a `T`.
struct Metric<T: 'static> {
    name: &'static str,
    help: &'static str,
    kind: v1::MetricType,
    /// Labels after [`BASE`].
    labels: &'static [&'static str],
    /// What the host must count.
    needs: Needs,
    read: fn(&T, &mut Samples),
}

impl<T> Metric<T> {
    const fn new(kind: v1::MetricType, name: &'static str, help: &'static str, read: fn(&T, &mut Samples)) -> Self {
        Self { name, help, kind, labels: &[], needs: Needs::Nothing, read }
    }

    const fn labels(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    const fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Pressure,
    Hugepages,
    HugepagePeaks,
}

impl Needs {
    fn are_met(self, counted: Counted) -> bool {
        match self {
            Self::Nothing => true,
            Self::Pressure => counted.pressure,
            Self::Hugepages => counted.hugepages,
            Self::HugepagePeaks => counted.hugepage_peaks,
        }
    }
}

/// Values of one metric, each with its own labels.
#[derive(Default)]
struct Samples(Vec<(Vec<String>, u64)>);

impl Samples {
    fn one(&mut self, value: u64) {
        self.0.push((Vec::new(), value));
    }

    fn labelled<const N: usize>(&mut self, labels: [&str; N], value: u64) {
        self.0.push((labels.map(str::to_owned).into(), value));
    }
}

/// Everything that is declared on a host that counts so much.
pub(super) fn declared(counted: Counted) -> Vec<v1::MetricDescriptor> {
    fn descriptor<T>(metric: &Metric<T>) -> v1::MetricDescriptor {
        v1::MetricDescriptor {
            name: metric.name.to_owned(),
            help: metric.help.to_owned(),
            label_keys: BASE.iter().chain(metric.labels).map(|label| (*label).to_owned()).collect(),
        }
    }
    let containers = container::all().filter(|metric| metric.needs.are_met(counted)).map(descriptor);
    containers.chain(network::all().map(descriptor)).collect()
}

/// The values of a sandbox and of its containers.
pub(super) fn encode(detail: &SandboxDetail, counted: Counted) -> v1::PodSandboxMetrics {
    let (view, key) = (&detail.view, &detail.view.spec.key);
    let base = |container: &str, id: &str, image: &str, name: &str| -> Vec<String> {
        [&key.name, &key.namespace, container, id, image, name].map(|label: &str| label.to_owned()).into()
    };
    let whole = base("", &detail.cgroup, "", view.id.as_str());
    let metrics = detail
        .network
        .as_ref()
        .map(|network| network::all().flat_map(|metric| samples(metric, network, network.timestamp, &whole)).collect());
    let container = |one: &ContainerDetail| {
        let spec = &one.view.spec;
        let image = if spec.image_as_written.is_empty() { &spec.image } else { &spec.image_as_written };
        let base = base(&spec.key.name, &one.cgroup, image, one.view.id.as_str());
        let declared = container::all().filter(|metric| metric.needs.are_met(counted));
        v1::ContainerMetrics {
            container_id: one.view.id.to_string(),
            metrics: declared.flat_map(|metric| samples(metric, one, one.timestamp, &base)).collect(),
        }
    };
    v1::PodSandboxMetrics {
        pod_sandbox_id: view.id.to_string(),
        metrics: metrics.unwrap_or_default(),
        container_metrics: detail.containers.iter().map(container).collect(),
    }
}

fn samples<T>(metric: &Metric<T>, subject: &T, timestamp: i64, base: &[String]) -> Vec<v1::Metric> {
    let mut samples = Samples::default();
    (metric.read)(subject, &mut samples);
    let encode = |(labels, value): (Vec<String>, u64)| v1::Metric {
        name: metric.name.to_owned(),
        timestamp,
        metric_type: i32::from(metric.kind),
        label_values: base.iter().cloned().chain(labels).collect(),
        value: Some(v1::UInt64Value { value }),
    };
    samples.0.into_iter().map(encode).collect()
}
