//! What is remembered between two measurements of an object, so that rates can be
//! told without anybody polling in the background.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::cgroup::Gauge;

const SECOND: u64 = 1_000_000_000;

/// A rate is told over at least this long: two clients that ask one right after the
/// other must not see noise.
const WINDOW: i64 = 1_000_000_000;

/// A folder is measured again when its last measurement is this many times older
/// than it took: at most a twentieth of a CPU goes into looking at big folders.
const REST: u32 = 20;

/// The last measurements of one container or pod.
#[derive(Debug, Default)]
pub struct Samples {
    /// Measures its cgroup.
    pub gauge: Gauge,
    cpu: Mutex<Option<Rate>>,
    layer: Mutex<Option<Measured>>,
}

/// CPU time used up to a moment. Both in nanoseconds; the moment by a clock that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: i64,
    usage: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// What the rate is told against.
    base: Sample,
    /// Becomes the base once it is old enough.
    last: Sample,
}

/// What a writable layer took, and when that was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUsage {
    pub bytes: u64,
    pub inodes: u64,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

#[derive(Debug)]
struct Measured {
    usage: LayerUsage,
    when: Instant,
    took: Duration,
}

impl Samples {
    /// Nanoseconds of CPU per second up to now, against an earlier call. The first
    /// call has none: it tells the average over `age`, in nanoseconds; the usage was 0 then.
    pub fn nano_cores(&self, age: i64, usage: u64) -> u64 {
        // A clock that nobody sets.
        static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let at = i64::try_from(BEGIN.elapsed().as_nanos()).unwrap_or(i64::MAX);
        self.rate(age.max(0), at, usage)
    }

    fn rate(&self, age: i64, at: i64, usage: u64) -> u64 {
        let mut kept = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Sample {
            at: at - age,
            usage: 0,
        };
        let mut rate = kept.unwrap_or(Rate {
            base: start,
            last: start,
        });
        // The counter began anew.
        if usage < rate.last.usage {
            rate = Rate {
                base: start,
                last: start,
            };
        }
        if at - rate.last.at >= WINDOW {
            rate.base = rate.last;
            rate.last = Sample { at, usage };
        }
        *kept = Some(rate);
        per_second(rate.base, at, usage)
    }

    /// What the writable layer takes. `measure` walks through it, so it is not called
    /// when that was done a moment ago.
    pub fn layer<E>(
        &self,
        now: i64,
        measure: impl FnOnce() -> Result<(u64, u64), E>,
    ) -> Result<LayerUsage, E> {
        // Held while measuring: who asks at the same time gets the same answer.
        let mut kept = self.layer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(measured) = &*kept
            && measured.when.elapsed() < measured.took * REST
        {
            return Ok(measured.usage);
        }
        let when = Instant::now();
        let (bytes, inodes) = measure()?;
        let usage = LayerUsage {
            bytes,
            inodes,
            at: now,
        };
        let took = when.elapsed();
        *kept = Some(Measured { usage, when, took });
        Ok(usage)
    }
}

fn per_second(base: Sample, at: i64, usage: u64) -> u64 {
    let Ok(window) = u64::try_from(at - base.at) else {
        return 0;
    };
    if window == 0 {
        return 0;
    }
    let used = u128::from(usage.saturating_sub(base.usage));
    u64::try_from(used * u128::from(SECOND) / u128::from(window)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    fn seconds(n: u64) -> u64 {
        n * SECOND
    }

    #[test]
    fn rates() {
        let samples = Samples::default();
        // First: the average since the start, ten seconds ago.
        let start = 100 * S;
        assert_eq!(samples.rate(10 * S, start + 10 * S, seconds(5)), SECOND / 2);
        // Then over the time between two calls.
        assert_eq!(samples.rate(20 * S, start + 20 * S, seconds(25)), seconds(2));
        // One that comes at once is told about the same ten seconds.
        let soon = samples.rate(20 * S, start + 20 * S + 1, seconds(25));
        assert!((seconds(2) - 1..=seconds(2)).contains(&soon), "{soon}");
        assert_eq!(samples.rate(30 * S, start + 30 * S, seconds(25)), 0);
        // The counter began anew.
        assert_eq!(samples.rate(10 * S, start + 40 * S, seconds(1)), SECOND / 10);
        assert_eq!(Samples::default().rate(0, start, seconds(1)), 0);
        assert_eq!(Samples::default().nano_cores(-S, seconds(1)), 0);
    }

    #[test]
    fn a_layer_is_not_walked_through_all_the_time() {
        let samples = Samples::default();
        let mut walks = 0;
        for now in 1..=3 {
            let usage = samples.layer(now, || {
                walks += 1;
                std::thread::sleep(Duration::from_millis(20));
                Ok::<_, ()>((7, 8))
            });
            assert_eq!(
                usage,
                Ok(LayerUsage {
                    bytes: 7,
                    inodes: 8,
                    at: 1
                })
            );
        }
        assert_eq!(walks, 1);
        assert_eq!(Samples::default().layer(1, || Err("gone")), Err("gone"));
    }
}
