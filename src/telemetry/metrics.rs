//! Every metric of berthd, with its name, for Prometheus.
//!
//! What is counted is counted where it happens, through [`metrics`]; what there is
//! at a moment (pods, containers, images, memory) is looked at when somebody
//! scrapes: nothing polls.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::process;

/// What the text that [`Metrics::encode`] makes is called.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the buckets, in seconds: from a status read in memory to a long pull.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0,
];

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static ALL: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &ALL
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Method {
    /// The method's name: "RunPodSandbox".
    pub method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answer {
    pub method: String,
    /// The gRPC code in words: "OK", "NotFound".
    pub code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct State {
    pub state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// "fetched", "unchanged" (the tag had not moved) or "failed".
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct By {
    /// "bridge" or "cni".
    pub by: &'static str,
}

/// What there is at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Every state there can be, with how many are in it.
    pub pods: Vec<(&'static str, usize)>,
    pub containers: Vec<(&'static str, usize)>,
    pub images: Vec<(&'static str, usize)>,
}

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub rpcs: Family<Answer, Counter>,
    pub rpc_seconds: Family<Method, Histogram>,
    pub rpcs_in_flight: Family<Method, Gauge>,
    pods: Family<State, Gauge>,
    containers: Family<State, Gauge>,
    images: Family<State, Gauge>,
    pub pulls: Family<Outcome, Counter>,
    pub pulled_bytes: Counter,
    pub layers_fetched: Counter,
    pub layers_shared: Counter,
    pub shims_started: Counter,
    pub shims_lost: Counter,
    pub layers_broken: Counter,
    pub recoveries: Counter,
    pub network_seconds: Family<By, Histogram>,
    memory: Gauge,
    descriptors: Gauge,
    cpu_seconds: Counter<f64, AtomicU64>,
    start_time: Gauge<f64, AtomicU64>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    fn new() -> Metrics {
        let new = Metrics {
            registry: Registry::default(),
            rpcs: Family::default(),
            rpc_seconds: Family::new_with_constructor(seconds),
            rpcs_in_flight: Family::default(),
            pods: Family::default(),
            containers: Family::default(),
            images: Family::default(),
            pulls: Family::default(),
            pulled_bytes: Counter::default(),
            layers_fetched: Counter::default(),
            layers_shared: Counter::default(),
            shims_started: Counter::default(),
            shims_lost: Counter::default(),
            layers_broken: Counter::default(),
            recoveries: Counter::default(),
            network_seconds: Family::new_with_constructor(seconds),
            memory: Gauge::default(),
            descriptors: Gauge::default(),
            cpu_seconds: Counter::default(),
            start_time: Gauge::default(),
        };
        new.registered()
    }

    /// The names, and what they mean. Counters get the suffix `_total`.
    fn registered(mut self) -> Metrics {
        let r = &mut self.registry;
        r.register(
            "berth_rpcs",
            "Calls that were answered, by method and gRPC code",
            self.rpcs.clone(),
        );
        r.register_with_unit(
            "berth_rpc_duration",
            "Time from a call to the end of its answer",
            Unit::Seconds,
            self.rpc_seconds.clone(),
        );
        r.register(
            "berth_rpcs_in_flight",
            "Calls that are not answered yet, streams among them",
            self.rpcs_in_flight.clone(),
        );
        r.register("berth_pods", "Pods by state", self.pods.clone());
        r.register("berth_containers", "Containers by state", self.containers.clone());
        r.register(
            "berth_images",
            "Images, by whether a container stands on them",
            self.images.clone(),
        );
        r.register("berth_image_pulls", "Pulls by outcome", self.pulls.clone());
        r.register_with_unit(
            "berth_image_fetched",
            "Bytes of layers that came from registries",
            Unit::Bytes,
            self.pulled_bytes.clone(),
        );
        r.register(
            "berth_image_layers_fetched",
            "Layers that were fetched and unpacked",
            self.layers_fetched.clone(),
        );
        r.register(
            "berth_image_layers_shared",
            "Layers of pulled images that were on the node already, or came with another pull",
            self.layers_shared.clone(),
        );
        r.register(
            "berth_image_layers_broken",
            "Layers that were not what was unpacked when they were looked at after an unclean stop of the machine",
            self.layers_broken.clone(),
        );
        r.register(
            "berth_shims_started",
            "Shims that were started",
            self.shims_started.clone(),
        );
        r.register(
            "berth_shims_lost",
            "Shims that died without telling their container's exit",
            self.shims_lost.clone(),
        );
        r.register(
            "berth_recoveries",
            "Times that a berthd started on the records of an earlier one, counted in the records",
            self.recoveries.clone(),
        );
        r.register_with_unit(
            "berth_network_setup_duration",
            "Time to give a pod its network, by who made it",
            Unit::Seconds,
            self.network_seconds.clone(),
        );
        r.register(
            "process_resident_memory_bytes",
            "Resident memory of berthd",
            self.memory.clone(),
        );
        r.register(
            "process_open_fds",
            "Open descriptors of berthd",
            self.descriptors.clone(),
        );
        r.register(
            "process_cpu_seconds",
            "CPU time that berthd used",
            self.cpu_seconds.clone(),
        );
        r.register(
            "process_start_time_seconds",
            "When berthd started, since the epoch",
            self.start_time.clone(),
        );
        self
    }

    /// The metrics as text, with what there is now.
    pub fn encode(&self, present: &Present) -> Result<String, std::fmt::Error> {
        for (family, states) in [
            (&self.pods, &present.pods),
            (&self.containers, &present.containers),
            (&self.images, &present.images),
        ] {
            for (state, count) in states {
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                family.get_or_create(&State { state }).set(count);
            }
        }
        // What cannot be read keeps its last value.
        if let Ok(usage) = process::usage() {
            self.memory.set(usage.resident);
            self.descriptors.set(usage.descriptors);
            // The kernel counts; a counter of this kind keeps the bits of a float.
            let cpu = usage.cpu.as_secs_f64().to_bits();
            self.cpu_seconds.inner().store(cpu, Ordering::Relaxed);
            self.start_time.set(usage.started.as_secs_f64());
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A pod has its network.
    pub fn network_made(&self, by: &'static str, took: Duration) {
        self.network_seconds
            .get_or_create(&By { by })
            .observe(took.as_secs_f64());
    }

    pub fn pulled(&self, outcome: &'static str) {
        self.pulls.get_or_create(&Outcome { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_what_was_counted_and_what_there_is() {
        let metrics = Metrics::new();
        metrics.pulled("fetched");
        metrics.pulled_bytes.inc_by(7);
        metrics.network_made("bridge", Duration::from_millis(3));
        let present = Present {
            pods: vec![("ready", 2), ("stopped", 0)],
            ..Present::default()
        };
        let text = metrics.encode(&present).unwrap();
        for line in [
            "berth_image_pulls_total{outcome=\"fetched\"} 1",
            "berth_image_fetched_bytes_total 7",
            "berth_network_setup_duration_seconds_bucket{le=\"0.005\",by=\"bridge\"} 1",
            "berth_pods{state=\"ready\"} 2",
            "berth_pods{state=\"stopped\"} 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        let resident = text
            .lines()
            .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        assert!(resident.unwrap().parse::<u64>().unwrap() > 1 << 20, "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
