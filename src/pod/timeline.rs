//! What the start of a pod took, step by step. Kept in the records of sandbox and
//! container, and told in their verbose statuses.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::now;
use crate::{failpoint, telemetry::span};

/// Most steps that one object keeps: pulls of a pod that never comes up go on for ever.
const MOST: usize = 32;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// "namespaces", "network", "pull", "shim" …
    pub name: String,
    /// When it began, in nanoseconds since the epoch.
    pub at: i64,
    /// How long it took, in microseconds.
    pub took: u64,
    /// Of a pull: the image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Of a pull: what came from the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A step under way.
#[derive(Debug)]
pub struct Begun {
    name: &'static str,
    at: i64,
    since: Instant,
    /// The same in a trace of the call.
    _span: tracing::Span,
}

impl Step {
    pub fn begin(name: &'static str) -> Begun {
        failpoint::reach_part("step", name);
        Begun {
            name,
            at: now(),
            since: Instant::now(),
            _span: span::step(name),
        }
    }
}

impl Begun {
    pub fn end(self) -> Step {
        Step {
            name: self.name.to_owned(),
            at: self.at,
            took: u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX),
            image: String::new(),
            bytes: None,
        }
    }

    /// The end of a pull.
    pub fn end_pull(self, image: &str, bytes: u64) -> Step {
        Step {
            image: image.to_owned(),
            bytes: Some(bytes),
            ..self.end()
        }
    }
}

/// The steps so far, in the order of their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(Vec<Step>);

impl Timeline {
    /// Adds a step; one too many is left out.
    pub fn push(&mut self, step: Step) {
        if self.0.len() < MOST {
            self.0.push(step);
        }
    }

    /// As clients see it.
    pub fn to_json(&self) -> String {
        // Numbers and texts: this cannot fail.
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_reads_back() {
        let mut timeline = Timeline::default();
        for _ in 0..MOST + 5 {
            timeline.push(Step::begin("pull").end_pull("a:1", 7));
        }
        timeline.push(Step::begin("start").end());
        let text = timeline.to_json();
        let read: Timeline = serde_json::from_str(&text).unwrap();
        assert_eq!((read.0.len(), &read), (MOST, &timeline));
        assert_eq!((read.0[0].image.as_str(), read.0[0].bytes), ("a:1", Some(7)));
        let plain = serde_json::to_string(&Step::begin("start").end()).unwrap();
        assert!(!plain.contains("image") && !plain.contains("bytes"), "{plain}");
    }
}
