//! Which device the tests of a device run on: `NORMA_TEST_DEVICE`, `cpu` or `cuda:N`.
//!
//! Without it they run on the CPU, by the same code but for the kernels: with candle's operations composed, and
//! with keys and values in pages.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::Device;
use norma::base::{Base, OpenOptions, device};
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma::model::paged::PagedCache;

use crate::golden::{llava_folder, vision_config};

/// The device of this run.
pub fn test_device() -> &'static Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| {
        let name = std::env::var("NORMA_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
        device::named(&name).unwrap()
    });
    &DEVICE
}

/// Tells a figure to who asked for output (`--nocapture`), as `tests/gpu/check.sh` does.
#[expect(clippy::print_stdout, reason = "the report of a device's figures")]
pub fn report(what: &str, figures: &dyn Debug) {
    println!("{what} on {:?}: {figures:?}", test_device());
}

/// Opens a golden base on the device.
pub fn open_there(case: &str) -> Base {
    open_folder(&llava_folder().join(case), vision_config(case))
}

/// Opens any base on the device.
pub fn open_folder(folder: &Path, vision_config: Option<PathBuf>) -> Base {
    let options = OpenOptions {
        device: test_device().clone(),
        vision_config,
        ..OpenOptions::default()
    };
    Base::open(folder, &options).unwrap()
}

/// A cache in pages for so many rows, as an engine has on a device.
pub fn pages(model: &dyn MedVlm, capacity: usize, kv_type: KvType) -> PagedCache {
    PagedCache::new(model.shape(), capacity, kv_type, model.device()).unwrap()
}
