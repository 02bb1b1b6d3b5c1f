//! Values of cgroup v1, in which OCI and CRI speak, as cgroup v2 wants them.

/// cpu.shares (2..=262144) as cpu.weight (1..=10000). The curve is the one the OCI
/// runtimes agreed on in 2025: it maps the smallest, the default (1024 to 100) and
/// the largest value onto each other, which the linear formula did not:
/// `10^((l^2 + 125 l) / 612 - 7/34)` with `l = log2(shares)`, rounded up.
#[must_use]
pub fn weight(shares: u64) -> u32 {
    let shares = u32::try_from(shares.clamp(2, 262_144)).unwrap_or(262_144);
    if shares == 2 {
        return 1;
    }
    let l = f64::from(shares).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    // Rounded up without a cast: the first weight that reaches it. The tolerance is for
    // values that are whole numbers but for the last bits of a float.
    let target = 10f64.powf(exponent) - 1e-6;
    let mut low = 1;
    let mut high = 10_000;
    while low < high {
        let middle = u32::midpoint(low, high);
        if f64::from(middle) >= target {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// A limit where -1 means none.
#[must_use]
pub fn max(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// memory.swap.max from memory and swap together (v1's memsw). `Ok(None)`: leave it.
///
/// # Errors
/// A reason, when the two do not fit together.
pub fn swap_max(memory: Option<i64>, memory_and_swap: Option<i64>) -> Result<Option<String>, String> {
    match (memory, memory_and_swap) {
        (_, None | Some(0)) => Ok(None),
        (_, Some(..0)) => Ok(Some("max".to_owned())),
        (None | Some(..=0), Some(total)) => Err(format!(
            "a limit of memory and swap together ({total} bytes) needs a memory limit"
        )),
        (Some(memory), Some(total)) if total < memory => Err(format!(
            "memory and swap together ({total} bytes) are less than the memory limit ({memory})"
        )),
        (Some(memory), Some(total)) => Ok(Some((total - memory).to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_hits_the_fixed_points_and_rises() {
        assert_eq!(weight(0), 1);
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(u64::MAX), 10_000);
        // Pod overhead values that kubelet really sends.
        assert_eq!(weight(102), 17);
        assert_eq!(weight(512), 59);
        let all: Vec<_> = (2..5000).map(weight).collect();
        assert!(all.is_sorted());
    }

    #[test]
    fn swap_is_what_exceeds_memory() {
        assert_eq!(swap_max(Some(100), Some(150)), Ok(Some("50".into())));
        assert_eq!(swap_max(Some(100), Some(100)), Ok(Some("0".into())));
        assert_eq!(swap_max(Some(100), Some(-1)), Ok(Some("max".into())));
        assert_eq!(swap_max(Some(100), None), Ok(None));
        assert!(swap_max(Some(100), Some(50)).is_err());
        assert!(swap_max(None, Some(50)).is_err());
    }
}
