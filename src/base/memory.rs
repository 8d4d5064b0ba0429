//! How much memory a base takes, and how much a device has.

use std::fs;

use candle_core::Device;

use super::device;
use super::error::BaseError;
use super::weights::WeightType;
use crate::model::ops::Kernels;
use crate::model::outline::Outline;

/// Bytes of a base's parameters once loaded, norms not included.
pub fn weight_bytes(outline: &Outline, weights: WeightType, kernels: Kernels) -> u64 {
    let linears = outline.linears.iter();
    let linears: usize = linears.map(|shape| weights.bytes(*shape, kernels)).sum();
    (linears + outline.n_table_values * weights.table_bytes() + outline.n_other_values * 4) as u64
}

/// Refuses what a device has no memory for. Where nobody says how much is free, nothing is refused.
pub fn require(what: &str, bytes: u64, device: &Device) -> Result<(), BaseError> {
    match available_on(device) {
        Some(free) if free < bytes => Err(BaseError::Memory {
            what: what.into(),
            need: bytes >> 20,
            have: free >> 20,
        }),
        _ => Ok(()),
    }
}

/// Bytes that new allocations on a device may take.
pub fn available_on(device: &Device) -> Option<u64> {
    if device.is_cpu() {
        available()
    } else {
        device::available(device)
    }
}

/// Bytes that new allocations of the CPU may take: what Linux calls available, less where a control group has a
/// tighter limit.
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| parse_meminfo(&text))?;
    let group = |file: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{file}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    match (group("memory.max"), group("memory.current")) {
        (Some(limit), Some(used)) => Some(machine.min(limit.saturating_sub(used))),
        _ => Some(machine),
    }
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   12345 kB\n";
        assert_eq!(parse_meminfo(text), Some(12_345 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB"), None);
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        if available().is_some() {
            assert!(matches!(
                require("a base", u64::MAX, &Device::Cpu),
                Err(BaseError::Memory { .. })
            ));
        }
    }
}
