//! The innermost loops of a product: some rows times the panels of one group, summed in registers.
//!
//! Plain Rust over small arrays, which the compiler turns into vector code; compiled once for every
//! instruction set and chosen at run time. It knows nothing of threads and of how a weight is stored beyond
//! its panels.

use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

/// Columns of a panel: one AVX-512 register, two of AVX2, four of NEON.
pub const PANEL: usize = 16;
/// Panels of a group.
pub const GROUP: usize = 4;
/// Columns of a group.
pub const COLUMNS: usize = GROUP * PANEL;

/// A number that weights are stored as.
pub trait Stored: Copy + Send + Sync + Default + 'static {
    /// Rounds to the nearest stored value.
    fn narrow(value: f32) -> Self;
    /// The exact value.
    fn widen(self) -> f32;
    /// Whether widening costs nothing.
    const IS_F32: bool;
}

impl Stored for f32 {
    fn narrow(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    const IS_F32: bool = true;
}

impl Stored for bf16 {
    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    const IS_F32: bool = false;
}

/// The left side of a product: rows of `stride` values, of which those from `first` on are used.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub first: usize,
}

/// What happens at the ends of a sum.
#[derive(Clone, Copy)]
pub struct Edge<'a> {
    /// Whether sums start at zero rather than at what the result holds.
    pub first: bool,
    /// What is added when sums are complete, by column of the result.
    pub bias: Option<&'a [f32]>,
}

/// A column group of the result.
#[derive(Clone, Copy)]
pub struct Output {
    pub data: *mut f32,
    pub stride: usize,
    pub first: usize,
    pub n_columns: usize,
}

impl Output {
    /// The columns of one panel in one row, fewer than `PANEL` at the right edge.
    #[expect(unsafe_code, reason = "see `SharedOutput`")]
    #[inline(always)]
    fn panel<'a>(self, row: usize, panel: usize) -> &'a mut [f32] {
        let n = PANEL.min(self.n_columns.saturating_sub(panel * PANEL));
        if n == 0 {
            return &mut [];
        }
        // SAFETY: `row` is one of the task's rows and the columns lie within its group, so the place is
        // inside the result and nobody else's; the borrow ends before the next call.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.data
                    .add(row * self.stride + self.first + panel * PANEL),
                n,
            )
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

pub fn instruction_set() -> InstructionSet {
    static DETECTED: OnceLock<InstructionSet> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return InstructionSet::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return InstructionSet::Avx2;
            }
        }
        InstructionSet::Portable
    })
}

pub type Panels<'a, W> = [&'a [[W; PANEL]]; GROUP];

/// Adds the product of some rows of `a` with a group's panels to the result.
#[expect(unsafe_code, reason = "functions compiled for an instruction set")]
pub fn multiply<W: Stored>(
    a: Operand,
    panels: Panels<W>,
    edge: Edge,
    rows: &Range<usize>,
    out: Output,
) {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine was found to have AVX-512F.
        InstructionSet::Avx512 => unsafe { multiply_avx512(a, panels, edge, rows.clone(), out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine was found to have AVX2 and FMA.
        InstructionSet::Avx2 => unsafe { multiply_avx2(a, panels, edge, rows.clone(), out) },
        InstructionSet::Portable => {
            multiply_narrow::<W, { cfg!(target_arch = "aarch64") }>(
                a,
                panels,
                edge,
                rows.clone(),
                out,
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512<W: Stored>(
    a: Operand,
    panels: Panels<W>,
    edge: Edge,
    rows: Range<usize>,
    out: Output,
) {
    // Thirty-two registers: sixteen sums, the rest for operands.
    let mut row = rows.start;
    while row < rows.end {
        let at = (row, edge, out);
        row += match rows.end - row {
            1 => whole::<W, 1>(a, panels, at),
            2 => whole::<W, 2>(a, panels, at),
            3 => whole::<W, 3>(a, panels, at),
            4 => whole::<W, 4>(a, panels, at),
            5 => halves::<W, 5>(a, panels, at),
            6 => halves::<W, 6>(a, panels, at),
            7 => halves::<W, 7>(a, panels, at),
            _ => halves::<W, 8>(a, panels, at),
        };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2<W: Stored>(
    a: Operand,
    panels: Panels<W>,
    edge: Edge,
    rows: Range<usize>,
    out: Output,
) {
    multiply_narrow::<W, true>(a, panels, edge, rows, out);
}

/// Sixteen registers: at most twelve sums.
#[inline(always)]
pub fn multiply_narrow<W: Stored, const FUSED: bool>(
    a: Operand,
    panels: Panels<W>,
    edge: Edge,
    rows: Range<usize>,
    out: Output,
) {
    let mut row = rows.start;
    while row < rows.end {
        let at = (row, edge, out);
        row += match rows.end - row {
            1 => pairs::<W, 1, FUSED>(a, panels, at),
            2 => pairs::<W, 2, FUSED>(a, panels, at),
            3 => pairs::<W, 3, FUSED>(a, panels, at),
            4 => singles::<W, 4, FUSED>(a, panels, at),
            5 => singles::<W, 5, FUSED>(a, panels, at),
            _ => singles::<W, 6, FUSED>(a, panels, at),
        };
    }
}

type At<'a> = (usize, Edge<'a>, Output);

#[inline(always)]
fn whole<W: Stored, const MR: usize>(a: Operand, panels: Panels<W>, at: At) -> usize {
    tile::<W, MR, 4, true>(a, panels, 0, at)
}

#[inline(always)]
fn halves<W: Stored, const MR: usize>(a: Operand, [p, q, r, s]: Panels<W>, at: At) -> usize {
    tile::<W, MR, 2, true>(a, [p, q], 0, at);
    tile::<W, MR, 2, true>(a, [r, s], 2, at)
}

#[inline(always)]
fn pairs<W: Stored, const MR: usize, const FUSED: bool>(
    a: Operand,
    [p, q, r, s]: Panels<W>,
    at: At,
) -> usize {
    tile::<W, MR, 2, FUSED>(a, [p, q], 0, at);
    tile::<W, MR, 2, FUSED>(a, [r, s], 2, at)
}

#[inline(always)]
fn singles<W: Stored, const MR: usize, const FUSED: bool>(
    a: Operand,
    panels: Panels<W>,
    at: At,
) -> usize {
    for (index, panel) in panels.into_iter().enumerate() {
        tile::<W, MR, 1, FUSED>(a, [panel], index, at);
    }
    MR
}

/// `MR` rows times `NP` panels, summed in registers; returns `MR`.
#[inline(always)]
fn tile<W: Stored, const MR: usize, const NP: usize, const FUSED: bool>(
    a: Operand,
    panels: [&[[W; PANEL]]; NP],
    first_panel: usize,
    (row, edge, out): At,
) -> usize {
    let depth = panels[0].len();
    let rows: [&[f32]; MR] =
        std::array::from_fn(|r| &a.data[(row + r) * a.stride + a.first..][..depth]);
    let panels: [&[[W; PANEL]]; NP] = panels.map(|panel| &panel[..depth]);
    let mut sums = [[[0f32; PANEL]; NP]; MR];
    if !edge.first {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (p, sums) in sums.iter_mut().enumerate() {
                let held = out.panel(row + r, first_panel + p);
                sums[..held.len()].copy_from_slice(held);
            }
        }
    }
    for k in 0..depth {
        for (p, panel) in panels.iter().enumerate() {
            let weights = panel[k].map(Stored::widen);
            for r in 0..MR {
                let x = rows[r][k];
                for (sum, weight) in sums[r][p].iter_mut().zip(weights) {
                    *sum = if FUSED {
                        x.mul_add(weight, *sum)
                    } else {
                        x * weight + *sum
                    };
                }
            }
        }
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        for (p, sums) in sums.iter_mut().enumerate() {
            let held = out.panel(row + r, first_panel + p);
            if let Some(bias) = edge.bias {
                let first = out.first + (first_panel + p) * PANEL;
                for (sum, bias) in sums.iter_mut().zip(bias.iter().skip(first)) {
                    *sum += bias;
                }
            }
            let n = held.len();
            held.copy_from_slice(&sums[..n]);
        }
    }
    MR
}
