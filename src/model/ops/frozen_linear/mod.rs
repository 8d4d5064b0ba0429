//! Linear maps whose weights never change: forward, and the gradient of the input only.
//!
//! candle's own matmul would also compute, store and accumulate the gradient of the frozen weight: a
//! second copy of the base. [`FrozenLinear`] is the one door behind which frozen weights live, so that
//! their storage is nobody else's business: [`packed`] on CPUs; on other devices [`device`] for bf16 and [`dense`]
//! for f32; [`quantised`] for the block types of `mistralrs-quant`.

pub mod dense;
pub mod device;
pub mod packed;
pub mod quantised;

use std::fmt::Debug;

use candle_core::{Result, Tensor};

pub use dense::DenseLinear;
pub use device::DeviceLinear;
pub use packed::{Packed, PackedLinear, PackedWeight, Paired};
pub use quantised::QuantisedLinear;

/// A frozen weight of shape `[out, in]`, with its bias if it has one.
pub trait FrozenLinear: Debug + Send + Sync {
    /// `[rows, in]` to `[rows, out]`, f32 (bf16 of a [`DeviceLinear`]); the result carries the gradient of `x` if `x` is tracked.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// Bytes that the weight takes in memory.
    fn bytes(&self) -> usize;
}
