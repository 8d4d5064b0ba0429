//! The innermost loops of a product: some rows times a group's columns, summed in registers.
//!
//! Written over [`InstructionSet`], compiled once for each and chosen at run time. It knows nothing of
//! threads and of how a weight is stored beyond its panels.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::instruction_set::{Avx2, Avx512};
use super::instruction_set::{InstructionSet, LANES, Machine};
use super::stored::{RUN, Stored};

/// Columns of a panel.
pub const PANEL: usize = LANES;
/// Panels of a group.
pub const GROUP: usize = 4;
/// Columns of a group.
pub const COLUMNS: usize = GROUP * PANEL;

/// How many bytes ahead of use weights are asked for.
const AHEAD: usize = 8192;
/// Bytes that come from memory at once.
const LINE: usize = 64;

/// The left side of a product: rows of `stride` values, of which those from `first` on are used.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub first: usize,
}

/// One input of a group's columns.
pub type Row<W> = [[W; PANEL]; GROUP];

/// Some inputs of a group's columns.
pub struct Block<'a, W> {
    /// One row an input.
    pub rows: &'a [Row<W>],
    /// One row a run of inputs, from the first row on; none if the type has no scales.
    pub scales: &'a [Row<f32>],
}

impl<W> Clone for Block<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Block<'_, W> {}

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

/// Adds the product of some rows of `a` with a block to the result.
#[expect(unsafe_code, reason = "functions compiled for an instruction set")]
pub fn multiply<W: Stored>(
    a: Operand,
    block: Block<W>,
    edge: Edge,
    rows: &Range<usize>,
    out: Output,
) {
    let rows = rows.clone();
    match Machine::here() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token says that the machine has AVX-512F.
        Machine::Avx512(isa) => unsafe { multiply_avx512(isa, a, block, (rows, edge, out)) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token says that the machine has AVX2 and FMA.
        Machine::Avx2(isa) => unsafe { multiply_avx2(isa, a, block, (rows, edge, out)) },
        Machine::Portable(isa) => multiply_narrow(isa, a, block, (rows, edge, out)),
    }
}

/// Writes a block's values in f32, one row an input.
#[expect(unsafe_code, reason = "functions compiled for an instruction set")]
pub fn widen<W: Stored>(block: Block<W>, to: &mut [Row<f32>]) {
    match Machine::here() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token says that the machine has AVX-512F.
        Machine::Avx512(isa) => unsafe { widen_avx512(isa, block, to) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token says that the machine has AVX2 and FMA.
        Machine::Avx2(isa) => unsafe { widen_avx2(isa, block, to) },
        Machine::Portable(isa) => widen_with(isa, block, to),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_avx512<W: Stored>(isa: Avx512, block: Block<W>, to: &mut [Row<f32>]) {
    widen_with(isa, block, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn widen_avx2<W: Stored>(isa: Avx2, block: Block<W>, to: &mut [Row<f32>]) {
    widen_with(isa, block, to);
}

#[inline(always)]
fn widen_with<W: Stored, I: InstructionSet>(isa: I, block: Block<W>, to: &mut [Row<f32>]) {
    let runs = block.rows.chunks(RUN).zip(to.chunks_mut(RUN));
    for (run, (rows, to)) in runs.enumerate() {
        let mut scales = [isa.splat(1.0); GROUP];
        if let Some(stored) = block.scales.get(run) {
            for (scale, stored) in scales.iter_mut().zip(stored) {
                *scale = isa.load(stored);
            }
        }
        for (row, to) in rows.iter().zip(to) {
            ask_ahead(isa, row);
            for p in 0..GROUP {
                isa.store(W::load(isa, &row[p], scales[p]), &mut to[p]);
            }
        }
    }
}

/// Asks for the weights that come some rows after this one. Beyond a group's end lies the next one, or
/// nothing, which does no harm.
#[inline(always)]
pub fn ask_ahead<R, I: InstructionSet>(isa: I, row: &R) {
    let first = std::ptr::from_ref(row).cast::<u8>();
    for line in 0..size_of::<R>() / LINE {
        isa.prefetch(first.wrapping_add(AHEAD + line * LINE));
    }
}

/// Rows, ends of sums and result of one product.
type Task<'a> = (Range<usize>, Edge<'a>, Output);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512<W: Stored>(isa: Avx512, a: Operand, block: Block<W>, (rows, edge, out): Task) {
    // Thirty-two registers: sixteen sums, and the rest for operands. Four rows of four panels need the
    // fewest loads; eight of two widen integers half as often.
    let mut row = rows.start;
    while row < rows.end {
        let at = (row, edge, out);
        row += match rows.end - row {
            1 => whole::<W, _, 1>(isa, a, block, at),
            2 => whole::<W, _, 2>(isa, a, block, at),
            3 => whole::<W, _, 3>(isa, a, block, at),
            8.. if W::SCALED => pairs::<W, _, 8>(isa, a, block, at),
            _ => whole::<W, _, 4>(isa, a, block, at),
        };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2<W: Stored>(isa: Avx2, a: Operand, block: Block<W>, task: Task) {
    multiply_narrow(isa, a, block, task);
}

/// Sixteen registers, two to a vector at best: at most twelve of them hold sums.
#[inline(always)]
pub fn multiply_narrow<W: Stored, I: InstructionSet>(
    isa: I,
    a: Operand,
    block: Block<W>,
    (rows, edge, out): Task,
) {
    let mut row = rows.start;
    while row < rows.end {
        let at = (row, edge, out);
        row += match rows.end - row {
            1 => pairs::<W, _, 1>(isa, a, block, at),
            2 => pairs::<W, _, 2>(isa, a, block, at),
            3 => pairs::<W, _, 3>(isa, a, block, at),
            4 => singles::<W, _, 4>(isa, a, block, at),
            5 => singles::<W, _, 5>(isa, a, block, at),
            _ => singles::<W, _, 6>(isa, a, block, at),
        };
    }
}

/// First row, ends of sums and result of one tile.
type At<'a> = (usize, Edge<'a>, Output);

#[inline(always)]
fn whole<W: Stored, I: InstructionSet, const MR: usize>(
    isa: I,
    a: Operand,
    block: Block<W>,
    at: At,
) -> usize {
    tile::<W, I, MR, GROUP>(isa, a, (block, 0), at)
}

#[inline(always)]
fn pairs<W: Stored, I: InstructionSet, const MR: usize>(
    isa: I,
    a: Operand,
    block: Block<W>,
    at: At,
) -> usize {
    tile::<W, I, MR, 2>(isa, a, (block, 0), at);
    tile::<W, I, MR, 2>(isa, a, (block, 2), at)
}

#[inline(always)]
fn singles<W: Stored, I: InstructionSet, const MR: usize>(
    isa: I,
    a: Operand,
    block: Block<W>,
    at: At,
) -> usize {
    for panel in 0..GROUP {
        tile::<W, I, MR, 1>(isa, a, (block, panel), at);
    }
    MR
}

/// `MR` rows times `NP` panels of a block, from `first_panel` on, summed in registers; returns `MR`.
#[inline(always)]
fn tile<W: Stored, I: InstructionSet, const MR: usize, const NP: usize>(
    isa: I,
    a: Operand,
    (block, first_panel): (Block<W>, usize),
    (row, edge, out): At,
) -> usize {
    let depth = block.rows.len();
    let mut rows: [&[f32]; MR] = [&[]; MR];
    for (r, place) in rows.iter_mut().enumerate() {
        *place = &a.data[(row + r) * a.stride + a.first..][..depth];
    }
    let weights = &block.rows[..depth];
    let zero = isa.splat(0.0);
    let mut sums = [[zero; NP]; MR];
    start(isa, &mut sums, (row, first_panel), edge, out);
    let mut scales = [zero; NP];
    let run_length = if W::SCALED { RUN } else { depth.max(1) };
    let mut first = 0;
    while first < depth {
        let last = depth.min(first + run_length);
        if W::SCALED {
            let stored = &block.scales[first / RUN];
            for p in 0..NP {
                scales[p] = isa.load(&stored[first_panel + p]);
            }
        }
        for k in first..last {
            if first_panel == 0 {
                ask_ahead(isa, &weights[k]);
            }
            let mut values = [zero; NP];
            for p in 0..NP {
                values[p] = W::load(isa, &weights[k][first_panel + p], scales[p]);
            }
            for r in 0..MR {
                let x = isa.splat(rows[r][k]);
                for p in 0..NP {
                    sums[r][p] = isa.multiply_add(x, values[p], sums[r][p]);
                }
            }
        }
        first = last;
    }
    finish(isa, &sums, (row, first_panel), edge, out);
    MR
}

/// Sets a tile's sums, which are zero, to what they start at.
#[inline(always)]
pub fn start<I: InstructionSet, const MR: usize, const NP: usize>(
    isa: I,
    sums: &mut [[I::Vector; NP]; MR],
    (row, first_panel): (usize, usize),
    edge: Edge,
    out: Output,
) {
    if edge.first {
        return;
    }
    for (r, sums) in sums.iter_mut().enumerate() {
        for (p, sum) in sums.iter_mut().enumerate() {
            *sum = read(isa, out.panel(row + r, first_panel + p));
        }
    }
}

/// Writes a tile's sums.
#[inline(always)]
pub fn finish<I: InstructionSet, const MR: usize, const NP: usize>(
    isa: I,
    sums: &[[I::Vector; NP]; MR],
    (row, first_panel): (usize, usize),
    edge: Edge,
    out: Output,
) {
    for (r, sums) in sums.iter().enumerate() {
        for (p, sum) in sums.iter().enumerate() {
            let mut sum = *sum;
            let place = out.panel(row + r, first_panel + p);
            if let Some(bias) = edge.bias {
                let first = out.first + (first_panel + p) * PANEL;
                let bias = &bias[first.min(bias.len())..];
                sum = isa.add(sum, read(isa, &bias[..place.len()]));
            }
            write(isa, sum, place);
        }
    }
}

/// The first places of a vector, or all.
#[inline(always)]
fn read<I: InstructionSet>(isa: I, from: &[f32]) -> I::Vector {
    if let Some(from) = from.first_chunk::<PANEL>() {
        return isa.load(from);
    }
    let mut values = [0f32; PANEL];
    values[..from.len()].copy_from_slice(from);
    isa.load(&values)
}

#[inline(always)]
fn write<I: InstructionSet>(isa: I, value: I::Vector, to: &mut [f32]) {
    if let Some(to) = to.first_chunk_mut::<PANEL>() {
        return isa.store(value, to);
    }
    let mut values = [0f32; PANEL];
    isa.store(value, &mut values);
    let n = to.len();
    to.copy_from_slice(&values[..n]);
}
