//! Named steps at which a test ends berthd as a power switch would: in the middle of
//! its work, with no word to anybody. Programs without debug assertions have none.
//!
//! Every step that an operation says it is at, every step of a timeline and every commit
//! of the records is one, before and after; the takings-down name theirs by themselves.
//! `BERTH_FAILPOINT=NAME` or `NAME#N` ends berthd when it comes to the step for the first
//! or the N-th time; `BERTH_FAILPOINTS_SEEN=FILE` has every step written down, once each.

#[cfg(debug_assertions)]
pub use with::reach;

/// The work has come to a step.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_step: &str) {}

/// As [`reach`], with what is at hand in two parts: "before", "write container".
#[inline(always)]
pub fn reach_part(_part: &str, _step: &str) {
    #[cfg(debug_assertions)]
    with::reach_part(_part, _step);
}

#[cfg(debug_assertions)]
mod with {
    use std::{
        collections::BTreeSet,
        env,
        fs::OpenOptions,
        io::Write,
        sync::{Mutex, OnceLock, PoisonError},
    };

    use rustix::process::{Signal, getpid, kill_process};

    struct Plan {
        /// The step, and how many more times it is let pass.
        fatal: Option<(String, Mutex<u32>)>,
        seen: Option<(String, Mutex<BTreeSet<String>>)>,
    }

    fn plan() -> &'static Plan {
        static PLAN: OnceLock<Plan> = OnceLock::new();
        PLAN.get_or_init(|| Plan {
            fatal: env::var("BERTH_FAILPOINT").ok().map(|text| {
                let (name, count) = text.rsplit_once('#').unwrap_or((&text, "1"));
                let count: u32 = count.parse().unwrap_or(1);
                (name.to_owned(), Mutex::new(count.saturating_sub(1)))
            }),
            seen: env::var("BERTH_FAILPOINTS_SEEN")
                .ok()
                .map(|path| (path, Mutex::default())),
        })
    }

    /// The work has come to a step.
    pub fn reach(step: &str) {
        let plan = plan();
        if let Some((path, seen)) = &plan.seen
            && seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(step.to_owned())
            && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
        {
            // In one write, for a berthd that is about to be killed has others beside it.
            let _ = file.write_all(format!("{step}\n").as_bytes());
        }
        if let Some((name, left)) = &plan.fatal
            && name == step
        {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            if *left > 0 {
                *left -= 1;
                return;
            }
            let _ = kill_process(getpid(), Signal::KILL);
            // The signal is on its way: not a step further.
            loop {
                std::thread::park();
            }
        }
    }

    pub fn reach_part(part: &str, step: &str) {
        let plan = plan();
        if plan.seen.is_some() || plan.fatal.is_some() {
            reach(&format!("{part} {step}"));
        }
    }
}
