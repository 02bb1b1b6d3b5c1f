//! What comes from outside, fed with anything: a body for each format, which panics
//! when something accepted is not as it must be.
//!
//! The bodies stand beside what they test, in files `fuzz.rs`. They are called by the
//! targets of cargo-fuzz (`fuzz/`) and, with its seeds and mutations of them, by the
//! test below. In no program: compiled for tests and with the feature `fuzz` only.

/// Takes any bytes; panics when a promise is broken.
pub type Body = fn(&[u8]);

/// Every target, by the name of its file in `fuzz/targets` and its folder of seeds.
pub const TARGETS: &[(&str, Body)] = &[
    ("ttrpc", crate::shim::fuzz::ttrpc),
    ("plan", crate::launcher::fuzz::plan),
    #[cfg(feature = "agent")]
    ("tar", crate::image::unpack::fuzz::tar),
    #[cfg(feature = "agent")]
    ("layer", crate::image::unpack::fuzz::layer),
    #[cfg(feature = "agent")]
    ("reference", crate::image::fuzz::reference),
    #[cfg(feature = "agent")]
    ("manifest", crate::image::fuzz::manifest),
    #[cfg(feature = "agent")]
    ("token", crate::image::fuzz::token),
    #[cfg(feature = "agent")]
    ("challenge", crate::image::fuzz::challenge),
    #[cfg(feature = "agent")]
    ("hosts", crate::image::fuzz::hosts),
    #[cfg(feature = "agent")]
    ("users", crate::spec::fuzz::users),
    #[cfg(feature = "agent")]
    ("cdi", crate::spec::fuzz::cdi),
    #[cfg(feature = "agent")]
    ("spdy", crate::stream::fuzz::spdy),
    #[cfg(feature = "agent")]
    ("websocket", crate::stream::fuzz::websocket),
    #[cfg(feature = "agent")]
    ("cni_result", crate::network::fuzz::cni_result),
    #[cfg(feature = "agent")]
    ("config", crate::config::fuzz::config),
];

/// Runs one target's body.
///
/// # Panics
/// When the bytes break a promise, and when there is no such target.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.unwrap_or_else(|| panic!("no fuzz target {target:?}"));
    body(data);
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
        path::{Path, PathBuf},
        time::{Duration, Instant, SystemTime},
    };

    use super::*;

    /// Inputs of one target; fewer when they take longer than [`TIME`].
    const ROUNDS: u64 = 400;
    const TIME: Duration = Duration::from_millis(400);

    /// xorshift64*: small, and the same everywhere.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.next() % bound.max(1) as u64).unwrap()
        }

        fn bytes(&mut self, most: usize) -> Vec<u8> {
            let length = self.below(most + 1);
            (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
        }

        /// A seed with a few changes, or bytes that are nothing.
        fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
            if self.below(10) == 0 {
                return self.bytes(600);
            }
            let mut data = seeds[self.below(seeds.len())].clone();
            for _ in 0..=self.below(6) {
                self.change(&mut data, seeds);
            }
            data.truncate(1 << 16);
            data
        }

        fn change(&mut self, data: &mut Vec<u8>, seeds: &[Vec<u8>]) {
            const EDGES: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'/', b'.', b':', b'=', b'9'];
            let at = self.below(data.len() + 1);
            let end = (at + self.below(40)).min(data.len());
            match self.below(8) {
                0 => data.insert(at, EDGES[self.below(EDGES.len())]),
                1 if at < data.len() => data[at] = EDGES[self.below(EDGES.len())],
                2 if at < data.len() => data[at] ^= 1 << self.below(8),
                3 => drop(data.drain(at..end)),
                4 => data.truncate(at),
                5 => {
                    let copy = data[at..end].to_vec();
                    let to = self.below(data.len() + 1);
                    data.splice(to..to, copy);
                }
                6 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    data.splice(at.., other[from..].iter().copied());
                }
                _ => {
                    let junk = self.bytes(8);
                    data.splice(at..end, junk);
                }
            }
        }
    }

    fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(target);
        let mut paths: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths
            .into_iter()
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    /// Seeds as they are, then mutations of them. `FUZZ_SEED` runs those of a failure
    /// again, `FUZZ_SECONDS` has each target run for longer, `FUZZ_TARGET` that one only.
    fn attack(target: &str, body: Body) {
        if env::var("FUZZ_TARGET").is_ok_and(|wanted| wanted != target) {
            return;
        }
        let seconds = env::var("FUZZ_SECONDS").map(|text| text.parse().unwrap());
        let (rounds, time) = match seconds {
            Ok(seconds) => (u64::MAX, Duration::from_secs(seconds)),
            Err(_) if env::var_os("FUZZ_SEED").is_some() => (ROUNDS, Duration::MAX),
            Err(_) => (ROUNDS, TIME),
        };
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let base = env::var("FUZZ_SEED")
            .map_or(start.as_secs() << 20 | u64::from(start.subsec_micros()), |text| {
                text.parse().unwrap()
            });
        let run = |what: &dyn std::fmt::Display, data: &[u8]| {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(data))) {
                eprintln!(
                    "target {target}, {what}, FUZZ_SEED={base}, input: {}",
                    data.escape_ascii()
                );
                resume_unwind(panic);
            }
        };
        let seeds = seeds(target);
        for (path, data) in &seeds {
            run(&path.display(), data);
        }
        let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, data)| data).collect();
        let begin = Instant::now();
        let mut done = 0;
        for round in 0..rounds {
            if begin.elapsed() > time {
                break;
            }
            done += 1;
            let mut random = Random((base ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
            run(&format_args!("round {round}"), &random.input(&seeds));
        }
        println!(
            "{target}: {} seeds, {done} rounds, {:?}, FUZZ_SEED={base}",
            seeds.len(),
            begin.elapsed()
        );
    }

    #[test]
    fn every_target_holds_its_promises() {
        for (target, body) in TARGETS {
            attack(target, *body);
        }
    }

    /// A target that cargo-fuzz does not know is never run for long.
    #[test]
    fn every_target_is_one_of_cargo_fuzz() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let files = fs::read_dir(folder.join("targets")).unwrap().count();
        assert_eq!(manifest.matches("[[bin]]").count(), files);
        for (target, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
            let text = fs::read_to_string(folder.join(format!("targets/{target}.rs"))).unwrap();
            assert!(text.contains(&format!("run(\"{target}\", data)")), "{target}");
        }
        if cfg!(feature = "agent") {
            assert_eq!(files, TARGETS.len());
        }
    }
}
