//! What all packed weights have in common: they are packed once and then multiplied.

use std::io;

/// A packed weight `[n_out, n_in]` with its kernel: [`super::packed::Packed`] or [`super::paired::Paired`].
pub trait PackedWeight: Send + Sync + Sized + 'static {
    /// Packs a weight whose rows are read when they are wanted: `read` is given the first of some rows and
    /// their place, `[rows, n_in]`. Rows are read a panel at a time, by all threads. `Unsupported` where
    /// the machine lacks the kernel.
    fn pack_rows(
        n_out: usize,
        n_in: usize,
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> io::Result<Self>;

    /// Bytes of a weight `[n_out, n_in]` once packed, scales included.
    fn bytes_of(n_out: usize, n_in: usize) -> usize;

    /// `[n_out, n_in]`.
    fn dims(&self) -> (usize, usize);

    /// `x W^T (+ bias)`: `[rows, n_in]` to `[rows, n_out]`.
    fn forward(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32>;

    /// `y W`: `[rows, n_out]` to `[rows, n_in]`, the gradient of the input.
    fn backward(&self, y: &[f32]) -> Vec<f32>;
}
