//! What systemd calls a container's cgroup: names of slices and scopes, and limits
//! as properties of a unit. Pure.

use zbus::Variant;

use crate::{cgroup::convert, proto::plan::Resources};

/// "no limit", as systemd writes it.
const INFINITY: u64 = u64::MAX;
/// Microseconds of cpu.max when a request names none.
const DEFAULT_PERIOD: u64 = 100_000;

/// A property and its value.
pub type Property = (&'static str, Variant<'static>);

/// The cgroup of a slice: systemd.slice(5) makes "a-b.slice" a child of "a.slice".
/// None for what is not the name of a slice, or of the root, which is no pod's.
pub fn slice_path(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".slice")?;
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.:\\@".contains(&byte))
    };
    if name.len() > 255 || !stem.split('-').all(plain) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Some(ends.map(|end| format!("/{}.slice", &stem[..end])).collect())
}

/// The path of a slice that is given by its name, or by the path itself.
pub fn slice_of(asked: &str) -> Option<String> {
    let name = asked.trim_end_matches('/').rsplit('/').next()?;
    let path = slice_path(name)?;
    let whole = asked.trim_end_matches('/').trim_start_matches('/');
    (whole == name || path.trim_start_matches('/') == whole).then_some(path)
}

/// The last part of a path: a unit's name.
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The slice that a scope is in.
pub fn slice_of_scope(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((parent, _)) => name(parent),
        None => "",
    }
}

/// Limits as properties. What systemd does not know (huge pages, devices, files of
/// other controllers) it does not touch either. All that it would set by itself is
/// named, for else a reload of its configuration would set its own defaults.
///
/// # Errors
/// A reason, when the values do not fit together.
pub fn properties(resources: &Resources) -> Result<Vec<Property>, String> {
    let mut all: Vec<Property> = Vec::new();
    let mut set = |name, value: Variant<'static>| all.push((name, value));
    if let Some(shares) = resources.cpu_shares.filter(|shares| *shares != 0) {
        set("CPUWeight", u64::from(convert::weight(shares)).into());
    }
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let period = resources.cpu_period.filter(|period| *period != 0);
        let quota = resources.cpu_quota.and_then(|quota| u64::try_from(quota).ok());
        let (quota, period) = (
            quota.filter(|quota| *quota != 0),
            period.unwrap_or(DEFAULT_PERIOD),
        );
        set("CPUQuotaPeriodUSec", period.into());
        set(
            "CPUQuotaPerSecUSec",
            quota.map_or(INFINITY, |quota| per_second(quota, period)).into(),
        );
    }
    for (name, list) in [
        ("AllowedCPUs", &resources.cpuset_cpus),
        ("AllowedMemoryNodes", &resources.cpuset_mems),
    ] {
        if !list.is_empty() {
            set(
                name,
                bits(list)
                    .ok_or_else(|| format!("{list:?} is no list of CPUs or memory nodes"))?
                    .into(),
            );
        }
    }
    if let Some(memory) = resources.memory_limit.filter(|limit| *limit != 0) {
        set("MemoryMax", u64::try_from(memory).unwrap_or(INFINITY).into());
    }
    if let Some(swap) = convert::swap_max(resources.memory_limit, resources.memory_swap_limit)? {
        set("MemorySwapMax", number(&swap)?.into());
    }
    if let Some(pids) = resources.pids_limit {
        set("TasksMax", u64::try_from(pids).unwrap_or(INFINITY).into());
    }
    unified(resources, &mut all)?;
    Ok(all)
}

/// The files of cgroup v2 that are properties of systemd too. They come last: as for
/// the files themselves, what is named so wins.
fn unified(resources: &Resources, all: &mut Vec<Property>) -> Result<(), String> {
    let mut entries: Vec<_> = resources.unified.iter().collect();
    entries.sort_unstable();
    for (file, value) in entries {
        let value = value.trim();
        match file.as_str() {
            "memory.min" => all.push(("MemoryMin", number(value)?.into())),
            "memory.low" => all.push(("MemoryLow", number(value)?.into())),
            "memory.high" => all.push(("MemoryHigh", number(value)?.into())),
            "memory.max" => all.push(("MemoryMax", number(value)?.into())),
            "memory.swap.max" => all.push(("MemorySwapMax", number(value)?.into())),
            "pids.max" => all.push(("TasksMax", number(value)?.into())),
            "cpu.weight" => all.push(("CPUWeight", number(value)?.into())),
            // Of systemd 252.
            "cpu.idle" if value == "1" => all.push(("CPUWeight", 0u64.into())),
            "cpu.max" => {
                let mut parts = value.split_whitespace();
                let quota = number(parts.next().unwrap_or("max"))?;
                let period = parts.next().map_or(Ok(DEFAULT_PERIOD), number)?;
                all.push(("CPUQuotaPeriodUSec", period.into()));
                let share = if quota == INFINITY {
                    INFINITY
                } else {
                    per_second(quota, period)
                };
                all.push(("CPUQuotaPerSecUSec", share.into()));
            }
            "cpuset.cpus" | "cpuset.mems" => {
                let name = if file == "cpuset.cpus" {
                    "AllowedCPUs"
                } else {
                    "AllowedMemoryNodes"
                };
                let bits = bits(value).ok_or_else(|| format!("{file}: {value:?} is no list"))?;
                all.push((name, bits.into()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Microseconds of CPU time in a second. systemd keeps whole percents only, so a
/// part of one is a whole one for it.
fn per_second(quota: u64, period: u64) -> u64 {
    const PERCENT: u64 = 10_000;
    let exact = quota.saturating_mul(1_000_000).div_ceil(period.max(1));
    exact.div_ceil(PERCENT).saturating_mul(PERCENT)
}

fn number(value: &str) -> Result<u64, String> {
    match value {
        "max" => Ok(INFINITY),
        value => value
            .parse()
            .map_err(|_| format!("{value:?} is neither a number nor \"max\"")),
    }
}

/// "0-2,7" as the bits of bytes, the lowest first. None for what is no list.
fn bits(list: &str) -> Option<Vec<u8>> {
    /// As many as Linux can have.
    const MOST: usize = 8192;
    let mut bytes = Vec::new();
    for range in list.split(',') {
        let (first, last) = range
            .trim()
            .split_once('-')
            .unwrap_or((range.trim(), range.trim()));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        if bytes.len() <= last / 8 {
            bytes.resize(last / 8 + 1, 0);
        }
        for bit in first..=last {
            *bytes.get_mut(bit / 8)? |= 1u8 << (bit % 8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_below_those_whose_names_it_begins_with() {
        for (name, path) in [
            ("kubepods.slice", Some("/kubepods.slice")),
            (
                "kubepods-burstable-pod1_2.slice",
                Some("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"),
            ),
            ("-.slice", None),
            ("kubepods", None),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a-.slice", None),
            (".slice", None),
            ("a/b.slice", None),
        ] {
            assert_eq!(slice_path(name).as_deref(), path, "{name}");
        }
    }

    #[test]
    fn slices_are_named_or_given_by_their_path() {
        let path = Some("/a.slice/a-b.slice".to_owned());
        for asked in [
            "a-b.slice",
            "/a-b.slice",
            "/a.slice/a-b.slice",
            "a.slice/a-b.slice/",
        ] {
            assert_eq!(slice_of(asked), path, "{asked}");
        }
        for asked in ["/x.slice/a-b.slice", "/kubepods/pod1", "", "/"] {
            assert_eq!(slice_of(asked), None, "{asked}");
        }
        assert_eq!(slice_of_scope("/a.slice/a-b.slice/c.scope"), "a-b.slice");
    }

    #[test]
    fn limits_are_properties() {
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(12_345),
            cpu_period: Some(50_000),
            cpuset_cpus: "0-2,9".into(),
            memory_limit: Some(1 << 20),
            memory_swap_limit: Some(3 << 20),
            pids_limit: Some(-1),
            unified: [("memory.high".to_owned(), "max".to_owned())].into(),
            ..Default::default()
        };
        let expected: Vec<Property> = vec![
            ("CPUWeight", 100u64.into()),
            ("CPUQuotaPeriodUSec", 50_000u64.into()),
            ("CPUQuotaPerSecUSec", 250_000u64.into()),
            ("AllowedCPUs", vec![0b111u8, 0b10].into()),
            ("MemoryMax", (1u64 << 20).into()),
            ("MemorySwapMax", (2u64 << 20).into()),
            ("TasksMax", u64::MAX.into()),
            ("MemoryHigh", u64::MAX.into()),
        ];
        assert_eq!(properties(&resources).unwrap(), expected);
        assert_eq!(properties(&Resources::default()).unwrap(), []);
    }

    #[test]
    fn what_cannot_be_a_property_is_said() {
        let with = |file: &str, value: &str| Resources {
            unified: [(file.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        assert!(properties(&with("memory.high", "much")).is_err());
        assert!(properties(&with("cpuset.cpus", "3-1")).is_err());
        assert!(properties(&with("hugetlb.2MB.max", "0")).unwrap().is_empty());
        let cpu = properties(&with("cpu.max", "max 20000")).unwrap();
        assert_eq!(
            cpu,
            [
                ("CPUQuotaPeriodUSec", 20_000u64.into()),
                ("CPUQuotaPerSecUSec", u64::MAX.into())
            ]
        );
    }
}
