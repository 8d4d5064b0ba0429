//! Devices by their names: `cpu`, and `cuda:N` in a program built with the feature `cuda`.

use candle_core::Device;
use thiserror::Error;

/// Why there is no such device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The name is none.
    #[error("`{name}` names no device: cpu, or cuda:N")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The machine has none, or the program was built without it.
    #[error("the device `{name}` is not there")]
    NotThere {
        /// What was asked for.
        name: String,
        /// Why.
        source: candle_core::Error,
    },
}

/// The device of this name.
pub fn named(name: &str) -> Result<Device, DeviceError> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let ordinal = name.strip_prefix("cuda:");
    match ordinal.and_then(|ordinal| ordinal.parse().ok()) {
        Some(ordinal) => Device::new_cuda(ordinal).map_err(|source| DeviceError::NotThere {
            name: name.into(),
            source,
        }),
        None => Err(DeviceError::Unknown { name: name.into() }),
    }
}

/// Bytes that are free on a GPU.
#[cfg(feature = "cuda")]
pub(super) fn available(device: &Device) -> Option<u64> {
    let Device::Cuda(device) = device else {
        return None;
    };
    let stream = device.cuda_stream();
    let (free, _) = stream.context().mem_get_info().ok()?;
    Some(free as u64)
}

/// Nobody says.
#[cfg(not(feature = "cuda"))]
pub(super) fn available(_device: &Device) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        assert!(named("cpu").unwrap().is_cpu());
        for name in ["", "cuda", "cuda:", "cuda:x", "gpu", "CPU"] {
            assert!(matches!(named(name), Err(DeviceError::Unknown { .. })));
        }
        if !cfg!(feature = "cuda") {
            let error = named("cuda:0").unwrap_err();
            assert_eq!(error.to_string(), "the device `cuda:0` is not there");
        }
    }
}
