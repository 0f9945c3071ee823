//! Limits as unit properties: what systemd is told so that a daemon-reload writes the same values that we wrote.
//! Pure but for one look at /proc/devices on cgroup v1; whoever makes or updates a scope.
//! Owns the list of properties: these and no others are ever sent.
//! Must never take a property's name from a spec, an annotation or an image.

use super::super::error::CgroupError;
use super::super::hierarchy::Mode;
use super::super::limits::{swap_beyond_memory, weight_of_shares};
use super::wire::Value;
use crate::spec::{Cpu, DeviceRule, Memory, Resources};

pub(super) type Properties = Vec<(&'static str, Value)>;

/// systemd's "no limit".
const INFINITY: u64 = u64::MAX;
const STOP_TIMEOUT_US: u64 = 90_000_000;

/// Properties that came after systemd 240, or mean something only on newer kernels.
const RECENT: [&str; 6] =
    ["CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes", "OOMPolicy", "MemoryMin", "MemoryZSwapMax"];

pub(super) fn is_recent(name: &str) -> bool {
    RECENT.contains(&name)
}

/// Whether systemd's refusal is that it does not know a property.
pub(super) fn is_unknown(error: &str, message: &str) -> bool {
    let names = ["PropertyReadOnly", "UnknownProperty", "InvalidArgs"];
    names.iter().any(|name| error.ends_with(name)) && RECENT.iter().any(|name| message.contains(name))
        || message.contains("unknown property")
}

/// The scope itself: nothing starts or stops it but us, everything inside is ours, and it is forgotten when it ends.
pub(super) fn of_scope(unit: &str, slice: &str, pid: u32) -> Properties {
    let text = |value: &str| Value::String(value.to_owned());
    vec![
        ("Description", Value::String(format!("keelson container {}", unit.trim_end_matches(".scope")))),
        ("Slice", text(slice)),
        ("PIDs", Value::U32s(vec![pid])),
        ("Delegate", Value::Bool(true)),
        ("DefaultDependencies", Value::Bool(false)),
        ("CollectMode", text("inactive-or-failed")),
        ("TimeoutStopUSec", Value::U64(STOP_TIMEOUT_US)),
        ("CPUAccounting", Value::Bool(true)),
        ("MemoryAccounting", Value::Bool(true)),
        ("TasksAccounting", Value::Bool(true)),
    ]
}

/// The limits, and the policies that go with them.
pub(super) fn of_limits(resources: &Resources, mode: Mode) -> Result<Properties, CgroupError> {
    let mut properties = Vec::new();
    if let Some(cpu) = &resources.cpu {
        of_cpu(&mut properties, cpu, mode);
    }
    if let Some(memory) = &resources.memory {
        of_memory(&mut properties, memory, mode)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        properties.push(("TasksMax", Value::U64(positive(limit).unwrap_or(INFINITY))));
    }
    if let Some(weight) = resources.block_io.as_ref().and_then(|io| io.weight).filter(|weight| *weight != 0) {
        match mode {
            Mode::V2 => {
                properties.push(("IOWeight", Value::U64(1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990)))
            }
            Mode::V1 | Mode::Hybrid => properties.push(("BlockIOWeight", Value::U64(u64::from(weight)))),
        }
    }
    // memory.oom.group is systemd's to write; without it systemd would take the kill of one process for the end of the unit.
    let together = resources.unified.get("memory.oom.group").is_some_and(|value| value.trim() == "1");
    properties.push(("OOMPolicy", Value::String(if together { "kill" } else { "continue" }.to_owned())));
    for (file, value) in &resources.unified {
        of_file(&mut properties, file, value.trim());
    }
    match mode {
        // No filter of systemd's: it would be rebuilt at each reload from names of devices that may be gone by then. Our own
        // program is attached beside and stays.
        Mode::V2 => properties.push(("DevicePolicy", Value::String("auto".to_owned()))),
        // v1 has one list for both, and a reload writes systemd's over ours.
        Mode::V1 | Mode::Hybrid => of_devices(&mut properties, &resources.devices),
    }
    Ok(properties)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

fn bytes(value: i64) -> Value {
    Value::U64(positive(value).unwrap_or(if value < 0 { INFINITY } else { 0 }))
}

/// The last word on a property counts.
fn set(properties: &mut Properties, name: &'static str, value: Value) {
    properties.retain(|(other, _)| *other != name);
    properties.push((name, value));
}

fn of_cpu(properties: &mut Properties, cpu: &Cpu, mode: Mode) {
    match (cpu.idle, cpu.shares.filter(|shares| *shares != 0), mode) {
        // systemd's word for idle is a weight of 0.
        (Some(1), _, Mode::V2) => properties.push(("CPUWeight", Value::U64(0))),
        (_, Some(shares), Mode::V2) => properties.push(("CPUWeight", Value::U64(weight_of_shares(shares)))),
        (_, Some(shares), Mode::V1 | Mode::Hybrid) => properties.push(("CPUShares", Value::U64(shares))),
        (_, None, _) => {}
    }
    let period = cpu.period.filter(|period| *period != 0);
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        quota_of(properties, positive(quota), period);
    }
    for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
        if let (Some(bits), Mode::V2) = (bits(list), mode) {
            properties.push((name, Value::Bytes(bits)));
        }
    }
}

/// systemd counts microseconds per second, in steps of ten thousand.
fn quota_of(properties: &mut Properties, quota: Option<u64>, period: Option<u64>) {
    let per_second = match quota {
        Some(quota) => {
            let exact = u128::from(quota) * 1_000_000 / u128::from(period.unwrap_or(100_000));
            u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(INFINITY)
        }
        None => INFINITY,
    };
    set(properties, "CPUQuotaPerSecUSec", Value::U64(per_second));
    if let Some(period) = period {
        set(properties, "CPUQuotaPeriodUSec", Value::U64(period));
    }
}

fn of_memory(properties: &mut Properties, memory: &Memory, mode: Mode) -> Result<(), CgroupError> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    match mode {
        Mode::V1 | Mode::Hybrid => properties.extend(limit.map(|limit| ("MemoryLimit", bytes(limit)))),
        Mode::V2 => {
            properties.extend(limit.map(|limit| ("MemoryMax", bytes(limit))));
            let low = memory.reservation.filter(|low| *low != 0);
            properties.extend(low.map(|low| ("MemoryLow", bytes(low))));
            properties.extend(swap_beyond_memory(memory)?.map(|swap| ("MemorySwapMax", bytes(swap))));
        }
    }
    Ok(())
}

/// A file of the `unified` map that systemd has a property for: otherwise a reload would write its own value over it.
fn of_file(properties: &mut Properties, file: &str, value: &str) {
    let number = |value: &str| if value == "max" { Some(INFINITY) } else { value.parse::<u64>().ok() };
    let name = match file {
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "memory.zswap.max" => "MemoryZSwapMax",
        "pids.max" => "TasksMax",
        "cpuset.cpus" | "cpuset.mems" => {
            let name = if file == "cpuset.cpus" { "AllowedCPUs" } else { "AllowedMemoryNodes" };
            if let Some(bits) = bits(value) {
                set(properties, name, Value::Bytes(bits));
            }
            return;
        }
        "cpu.max" => {
            let mut words = value.split_ascii_whitespace();
            let (quota, period) = (words.next().and_then(number), words.next().and_then(|word| word.parse().ok()));
            if let Some(quota) = quota {
                quota_of(properties, Some(quota).filter(|quota| *quota != INFINITY), period);
            }
            return;
        }
        _ => return,
    };
    if let Some(number) = number(value) {
        set(properties, name, Value::U64(number));
    }
}

/// `0-3,7` as a bit for each number, the lowest first; None when it is empty or no such list.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= 8192 {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0);
        for number in first..=last {
            *bits.get_mut(number / 8)? |= 1 << (number % 8);
        }
    }
    (!bits.is_empty()).then_some(bits)
}

/// v1: the allow-list in systemd's words. A rule it has no words for is left to the files.
fn of_devices(properties: &mut Properties, rules: &[DeviceRule]) {
    if rules.is_empty() {
        return;
    }
    let known = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let everything = |rule: &DeviceRule| {
        matches!(rule.kind.as_str(), "" | "a") && rule.major.is_none_or(|m| m < 0) && rule.minor.is_none_or(|m| m < 0)
    };
    let from = rules.iter().rposition(everything).unwrap_or(0);
    if rules.get(from).is_some_and(|rule| everything(rule) && rule.allow) {
        properties.push(("DevicePolicy", Value::String("auto".to_owned())));
        return;
    }
    let allowed = rules.iter().skip(from).filter(|rule| rule.allow).flat_map(|rule| {
        let access = if rule.access.is_empty() { "rwm".to_owned() } else { rule.access.clone() };
        device_names(rule, &known).into_iter().map(move |name| (name, access.clone()))
    });
    properties.push(("DevicePolicy", Value::String("strict".to_owned())));
    properties.push(("DeviceAllow", Value::Pairs(allowed.collect())));
}

fn device_names(rule: &DeviceRule, known: &str) -> Vec<String> {
    let (dir, group, heading) = match rule.kind.as_str() {
        "b" => ("block", "block", "Block devices:"),
        _ => ("char", "char", "Character devices:"),
    };
    match (rule.major.filter(|major| *major >= 0), rule.minor.filter(|minor| *minor >= 0)) {
        (Some(major), Some(minor)) => vec![format!("/dev/{dir}/{major}:{minor}")],
        (None, None) => vec![format!("{group}-*")],
        (Some(major), None) => {
            let section = known.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
            let entries = section.filter_map(|line| line.trim().split_once(' '));
            let names = entries.filter(|(number, _)| number.parse() == Ok(major));
            names.map(|(_, name)| format!("{group}-{}", name.trim())).collect()
        }
        (None, Some(_)) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(properties: &'a Properties, name: &str) -> Option<&'a Value> {
        properties.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    #[test]
    fn limits_become_the_properties_that_mean_the_same() {
        let resources = Resources {
            cpu: Some(Cpu {
                shares: Some(2048),
                quota: Some(12_345),
                period: Some(50_000),
                cpus: "0-2,9".into(),
                ..Cpu::default()
            }),
            memory: Some(Memory {
                limit: Some(1 << 30),
                swap: Some(3 << 29),
                reservation: Some(7),
                ..Memory::default()
            }),
            pids: Some(crate::spec::Pids { limit: Some(-1) }),
            unified: [("memory.oom.group", "1"), ("memory.high", "max"), ("pids.max", "10"), ("hugetlb.2MB.max", "0")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Resources::default()
        };
        let properties = of_limits(&resources, Mode::V2).unwrap();
        for (name, value) in [
            ("CPUWeight", Value::U64(weight_of_shares(2048))),
            ("CPUQuotaPerSecUSec", Value::U64(250_000)),
            ("CPUQuotaPeriodUSec", Value::U64(50_000)),
            ("AllowedCPUs", Value::Bytes(vec![0b111, 0b10])),
            ("MemoryMax", Value::U64(1 << 30)),
            ("MemorySwapMax", Value::U64(1 << 29)),
            ("MemoryLow", Value::U64(7)),
            ("MemoryHigh", Value::U64(INFINITY)),
            ("TasksMax", Value::U64(10)),
            ("OOMPolicy", Value::String("kill".into())),
            ("DevicePolicy", Value::String("auto".into())),
        ] {
            assert_eq!(get(&properties, name), Some(&value), "{name}");
        }
        assert_eq!(properties.len(), 11, "{properties:?}");
    }

    #[test]
    fn only_known_properties_are_ever_sent() {
        let sent = [
            "AllowedCPUs",
            "AllowedMemoryNodes",
            "BlockIOWeight",
            "CPUAccounting",
            "CPUQuotaPerSecUSec",
            "CPUQuotaPeriodUSec",
            "CPUShares",
            "CPUWeight",
            "CollectMode",
            "DefaultDependencies",
            "Delegate",
            "Description",
            "DeviceAllow",
            "DevicePolicy",
            "IOWeight",
            "MemoryAccounting",
            "MemoryHigh",
            "MemoryLimit",
            "MemoryLow",
            "MemoryMax",
            "MemoryMin",
            "MemorySwapMax",
            "MemoryZSwapMax",
            "OOMPolicy",
            "PIDs",
            "Slice",
            "TasksAccounting",
            "TasksMax",
            "TimeoutStopUSec",
        ];
        let hostile = ["ExecStopPost", "memory.max\0", "Slice", "OnFailure", "ExecStart"];
        let resources = Resources {
            unified: hostile.map(|name| (name.to_owned(), "/bin/sh".to_owned())).into(),
            ..Resources::default()
        };
        for mode in [Mode::V1, Mode::Hybrid, Mode::V2] {
            let mut all = of_scope("x.scope", "x.slice", 1);
            all.extend(of_limits(&resources, mode).unwrap());
            for (name, value) in all {
                assert!(sent.contains(&name), "{name}");
                assert_ne!(value, Value::String("/bin/sh".into()));
            }
        }
    }

    #[test]
    fn lists_of_numbers_become_bits() {
        assert_eq!(bits("0"), Some(vec![1]));
        assert_eq!(bits("8,1-2"), Some(vec![0b110, 1]));
        for bad in ["", "3-1", "a", "1-", "9000"] {
            assert_eq!(bits(bad), None, "{bad}");
        }
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_can_say() {
        for (quota, period, expected) in
            [(Some(100_000), None, 1_000_000), (Some(33_333), Some(100_000), 340_000), (None, None, INFINITY)]
        {
            let mut properties = Vec::new();
            quota_of(&mut properties, quota, period);
            assert_eq!(get(&properties, "CPUQuotaPerSecUSec"), Some(&Value::U64(expected)));
        }
    }

    #[test]
    fn v1_devices_are_named_as_systemd_names_them() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        let rule = |kind: &str, major, minor| DeviceRule {
            allow: true,
            kind: kind.into(),
            major: Some(major),
            minor: Some(minor),
            access: "rw".into(),
        };
        assert_eq!(device_names(&rule("c", 1, 3), known), ["/dev/char/1:3"]);
        assert_eq!(device_names(&rule("c", 136, -1), known), ["char-pts"]);
        assert_eq!(device_names(&rule("b", 8, -1), known), ["block-sd"]);
        assert_eq!(device_names(&rule("b", -1, -1), known), ["block-*"]);
        assert!(device_names(&rule("c", 8, -1), known).is_empty());
    }
}
