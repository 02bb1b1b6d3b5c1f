//! The rows of the tables, and what Berth must reach in each of them.

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    /// Microseconds.
    Micros,
    Seconds,
    Mebibytes,
    PodsPerSecond,
}

/// One line of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub name: &'static str,
    pub unit: Unit,
    /// None: nothing is set.
    pub goal: Option<f64>,
    /// How many pods there are, in the table of scale; 0 elsewhere.
    pub pods: usize,
}

const fn row(name: &'static str, unit: Unit, goal: f64) -> Row {
    Row {
        name,
        unit,
        goal: Some(goal),
        pods: 0,
    }
}

const fn scale(name: &'static str, unit: Unit) -> Row {
    Row {
        name,
        unit,
        goal: None,
        pods: 0,
    }
}

impl Row {
    pub fn at(self, pods: usize) -> Row {
        Row { pods, ..self }
    }

    /// Whether a greater figure is the better one.
    pub fn more_is_better(&self) -> bool {
        self.unit == Unit::PodsPerSecond
    }

    pub fn reached(&self, value: f64) -> Option<bool> {
        let goal = self.goal?;
        Some(if self.more_is_better() {
            value >= goal
        } else {
            value <= goal
        })
    }
}

use Unit::{Mebibytes, Micros, Milliseconds, PodsPerSecond, Seconds};

pub const START: Row = row(
    "pod start (sandbox + create + start), own network",
    Milliseconds,
    10.0,
);
pub const START_CHAIN: Row = row("the same, one CNI chain for all", Milliseconds, 50.0);
pub const START_HOST: Row = row("pod start, host network", Milliseconds, 6.0);
pub const STOP: Row = row("stop + remove, own network", Milliseconds, 10.0);
/// The chain's DEL is all of it.
pub const STOP_CHAIN: Row = scale("the same, one CNI chain for all: stop + remove", Milliseconds);
pub const STOP_HOST: Row = row("stop + remove, host network", Milliseconds, 5.0);
pub const BURST: Row = row("50 pods, 8 at a time", PodsPerSecond, 150.0);
pub const BURST_CHAIN: Row = scale("the same, one CNI chain for all: 50 pods", PodsPerSecond);
pub const START_CPU: Row = row("CPU per pod: start", Milliseconds, 8.0);
pub const START_CPU_CHAIN: Row = scale("the same, one CNI chain for all: CPU of a start", Milliseconds);
pub const STOP_CPU: Row = row("CPU per pod: teardown", Milliseconds, 6.0);
pub const STOP_CPU_CHAIN: Row = scale("the same, one CNI chain for all: CPU of a teardown", Milliseconds);
pub const POD_MEMORY: Row = row("memory per idle pod without workload (PSS)", Mebibytes, 0.15);
pub const AGENT_IDLE: Row = row("agent, anonymous memory, idle", Mebibytes, 4.0);
pub const AGENT_LOADED: Row = row("agent, anonymous memory, 60 pods", Mebibytes, 6.0);
pub const EXEC: Row = row("ExecSync `true`", Milliseconds, 2.0);
pub const EXEC_CPU: Row = row("ExecSync `true`: CPU", Milliseconds, 2.0);
pub const STATS: Row = row("ListContainerStats, 60 pods", Milliseconds, 3.0);
pub const GZIP: Row = row("pull 606 MiB, 5 gzip layers", Seconds, 1.6);
pub const GZIP_CPU: Row = row("pull, gzip: CPU", Seconds, 3.0);
pub const GZIP_PEAK: Row = row("pull, gzip: peak memory of the agent", Mebibytes, 60.0);
pub const ZSTD: Row = row("the same in zstd", Seconds, 1.0);
pub const ZSTD_CPU: Row = row("pull, zstd: CPU", Seconds, 1.8);
pub const ZSTD_PEAK: Row = row("pull, zstd: peak memory of the agent", Mebibytes, 60.0);
pub const LOGS: Row = row("1 GiB of 100-byte log lines", Seconds, 1.2);
pub const LOGS_CPU: Row = row("1 GiB of log lines: CPU without the writer's", Seconds, 1.0);
pub const RESTART: Row = row("restart with 60 pods until all are told", Seconds, 0.10);

/// The table of what Berth must reach, in its order.
pub const ALL: &[Row] = &[
    START,
    START_CHAIN,
    START_HOST,
    STOP,
    STOP_CHAIN,
    STOP_HOST,
    BURST,
    BURST_CHAIN,
    START_CPU,
    START_CPU_CHAIN,
    STOP_CPU,
    STOP_CPU_CHAIN,
    POD_MEMORY,
    AGENT_IDLE,
    AGENT_LOADED,
    EXEC,
    EXEC_CPU,
    STATS,
    GZIP,
    GZIP_CPU,
    GZIP_PEAK,
    ZSTD,
    ZSTD_CPU,
    ZSTD_PEAK,
    LOGS,
    LOGS_CPU,
    RESTART,
];

pub const ONE_MORE: Row = scale("start of one more pod", Milliseconds);
pub const ONE_MORE_CPU: Row = scale("its CPU", Milliseconds);
pub const ONE_LESS: Row = scale("stop + remove of one", Milliseconds);
pub const ONE_LESS_CPU: Row = scale("its CPU, teardown", Milliseconds);
pub const LIST_EACH: Row = scale("ListPodSandbox + ListContainers, per pod", Micros);
pub const STATS_EACH: Row = scale("ListContainerStats, per pod", Micros);
pub const RESTART_EACH: Row = scale("restart until all are told, per pod", Milliseconds);

/// The table of scale, each of them for 10, 100 and 500 pods.
pub const SCALE: &[Row] = &[
    ONE_MORE,
    ONE_MORE_CPU,
    ONE_LESS,
    ONE_LESS_CPU,
    LIST_EACH,
    STATS_EACH,
    RESTART_EACH,
];
