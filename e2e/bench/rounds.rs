//! Rounds: every server does one thing in turn, then all do it again, so that what
//! the machine does meanwhile meets all of them. What comes out are samples.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Context;
use e2e::Result;

use crate::{rows::Row, server::Server};

/// Figures by row and column.
#[derive(Debug, Default)]
pub struct Samples {
    values: BTreeMap<(&'static str, usize, String), Vec<f64>>,
}

/// Figures of one round of one server.
pub type Figures = Vec<(Row, f64)>;

impl Samples {
    pub fn add(&mut self, column: &str, figures: Figures) {
        for (row, value) in figures {
            let key = (row.name, row.pods, column.to_owned());
            self.values.entry(key).or_default().push(value);
        }
    }

    /// In order of size.
    pub fn sorted(&self, row: &Row, column: &str) -> Vec<f64> {
        let key = (row.name, row.pods, column.to_owned());
        let mut values = self.values.get(&key).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The numbers of pods that a row has figures for.
    pub fn counts(&self, row: &Row) -> Vec<usize> {
        let of_row = self.values.keys().filter(|(name, ..)| *name == row.name);
        let mut counts: Vec<_> = of_row.map(|(_, pods, _)| *pods).collect();
        counts.dedup();
        counts
    }
}

/// The smallest value that `percent` of all do not exceed.
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// One round that warms up and is not counted, then as many as are said.
pub async fn interleaved(
    what: &str,
    servers: &mut [&mut Server],
    rounds: usize,
    samples: &mut Samples,
    mut measure: impl AsyncFnMut(&mut Server) -> Result<Figures>,
) -> Result {
    let begun = Instant::now();
    for round in 0..=rounds {
        for server in servers.iter_mut() {
            let figures = measure(server)
                .await
                .with_context(|| format!("{what}, round {round}, {}", server.name()))?;
            if round > 0 {
                samples.add(&server.column, figures);
            }
        }
    }
    eprintln!(
        "{what}: {rounds} rounds in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(10.0));
        assert_eq!(percentile(&values, 95), Some(19.0));
        assert_eq!(percentile(&values[..1], 95), Some(1.0));
        assert_eq!(percentile(&values[..3], 50), Some(2.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
