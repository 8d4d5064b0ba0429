//! The innermost loops of a product of bf16 with bf16, summed in f32, two inputs at a time.
//!
//! [`DotBf16`] is the token of a machine with AVX512_BF16. Its instruction adds the product of each pair's
//! second inputs and then that of its first ones, each with one rounding, and takes numbers below f32's
//! normal ones for zero. It knows nothing of threads and of how a weight came to lie in pairs.

use std::ops::Range;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::instruction_set::{Avx512, InstructionSet, Machine};
use super::tile::{Edge, GROUP, Output, PANEL};

/// Two neighbouring inputs in bf16, the first one in the lower half.
pub type Pair = u32;

/// A pair of inputs of a panel's columns: one register, one line of memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct PairPanel(pub [Pair; PANEL]);

/// A pair of inputs of a group's columns.
pub type PairRow = [PairPanel; GROUP];

/// Puts two inputs together, each rounded to the nearest.
pub fn pair(first: f32, second: f32) -> Pair {
    let bits = |value| Pair::from(bf16::from_f32(value).to_bits());
    bits(first) | bits(second) << 16
}

/// Both inputs of a pair in f32.
pub fn widen_pair(pair: Pair) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & !0xffff)]
}

/// The left side of a product: rows of `stride` pairs, of which those from `first` on are used.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "no machine reads it")
)]
pub struct PairOperand<'a> {
    pub data: &'a [Pair],
    pub stride: usize,
    pub first: usize,
}

/// The machine multiplies pairs of bf16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct DotBf16(Avx512);

/// No machine of this kind multiplies pairs of bf16.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy, Debug)]
pub enum DotBf16 {}

#[cfg(not(target_arch = "x86_64"))]
impl DotBf16 {
    pub fn here() -> Option<Self> {
        None
    }
    pub fn narrow(self, _row: &[f32], _to: &mut [Pair]) {
        match self {}
    }
    pub fn multiply(
        self,
        _a: PairOperand,
        _weights: &[PairRow],
        _edge: Edge,
        _rows: &Range<usize>,
        _out: Output,
    ) {
        match self {}
    }
}

#[cfg(target_arch = "x86_64")]
impl DotBf16 {
    /// The token, if this machine can.
    pub fn here() -> Option<Self> {
        match Machine::here() {
            Machine::Avx512(isa) => is_x86_feature_detected!("avx512bf16").then_some(Self(isa)),
            _ => None,
        }
    }

    /// Rounds a row to pairs; where its length is odd, the last pair's second input is zero.
    #[expect(unsafe_code, reason = "functions compiled for an instruction set")]
    #[expect(clippy::unused_self, reason = "the token is the proof")]
    pub fn narrow(self, row: &[f32], to: &mut [Pair]) {
        // SAFETY: the token says that the machine has AVX512_BF16.
        unsafe { x86::narrow(row, to) }
    }

    /// Adds the product of some rows of `a` with a group's `weights` to the result.
    #[expect(unsafe_code, reason = "functions compiled for an instruction set")]
    pub fn multiply(
        self,
        a: PairOperand,
        weights: &[PairRow],
        edge: Edge,
        rows: &Range<usize>,
        out: Output,
    ) {
        // SAFETY: the token says that the machine has AVX512_BF16.
        unsafe { x86::multiply(self.0, a, weights, (rows.clone(), edge, out)) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64 as arch;
    use std::ops::Range;

    use super::super::tile::{ask_ahead, finish, start};
    use super::{Avx512, Edge, GROUP, InstructionSet, Output, PANEL, Pair, PairOperand, PairRow};

    /// Pairs that are rounded at once.
    const PAIRS: usize = PANEL / 2;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn narrow(row: &[f32], to: &mut [Pair]) {
        let (sixteens, rest) = row.as_chunks::<PANEL>();
        let (eights, end) = to.as_chunks_mut::<PAIRS>();
        for (values, to) in sixteens.iter().zip(&mut *eights) {
            *to = narrow_sixteen(values);
        }
        if rest.is_empty() {
            return;
        }
        let mut values = [0f32; PANEL];
        values[..rest.len()].copy_from_slice(rest);
        let pairs = narrow_sixteen(&values);
        // Fifteen values take eight pairs.
        match eights.get_mut(sixteens.len()) {
            Some(to) => *to = pairs,
            None => end.copy_from_slice(&pairs[..end.len()]),
        }
    }

    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn narrow_sixteen(values: &[f32; PANEL]) -> [Pair; PAIRS] {
        // SAFETY: sixteen f32 are a register; sixteen bf16 are eight pairs, any bits of which are numbers.
        unsafe {
            let rounded = arch::_mm512_cvtneps_pbh(arch::_mm512_loadu_ps(values.as_ptr()));
            std::mem::transmute::<arch::__m256bh, [Pair; PAIRS]>(rounded)
        }
    }

    /// Rows, ends of sums and result of one product.
    type Task<'a> = (Range<usize>, Edge<'a>, Output);

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn multiply(isa: Avx512, a: PairOperand, weights: &[PairRow], (rows, edge, out): Task) {
        // Thirty-two registers: twenty-four sums, which hide the instruction's latency, four panels and
        // a row's pair.
        let mut row = rows.start;
        while row < rows.end {
            let at = (row, edge, out);
            row += match rows.end - row {
                1 => tile::<1>(isa, a, weights, at),
                2 => tile::<2>(isa, a, weights, at),
                3 => tile::<3>(isa, a, weights, at),
                // Two even tiles rather than a full one and a short one.
                4 | 7 | 8 => tile::<4>(isa, a, weights, at),
                5 | 10 => tile::<5>(isa, a, weights, at),
                _ => tile::<6>(isa, a, weights, at),
            };
        }
    }

    /// `MR` rows times a group's columns, summed in registers; returns `MR`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn tile<const MR: usize>(
        isa: Avx512,
        a: PairOperand,
        weights: &[PairRow],
        (row, edge, out): (usize, Edge, Output),
    ) -> usize {
        let mut rows: [&[Pair]; MR] = [&[]; MR];
        for (r, place) in rows.iter_mut().enumerate() {
            *place = &a.data[(row + r) * a.stride + a.first..][..weights.len()];
        }
        let mut sums = [[isa.splat(0.0); GROUP]; MR];
        start(isa, &mut sums, (row, 0), edge, out);
        add_products(isa, &rows, weights, &mut sums);
        finish(isa, &sums, (row, 0), edge, out);
        MR
    }

    /// Not inlined: where the sums are also met by loops that stay loops, the compiler keeps them in memory.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn add_products<const MR: usize>(
        isa: Avx512,
        rows: &[&[Pair]; MR],
        weights: &[PairRow],
        sums: &mut [[arch::__m512; GROUP]; MR],
    ) {
        let rows = rows.map(|row| &row[..weights.len()]);
        let mut in_registers = *sums;
        for (k, weights) in weights.iter().enumerate() {
            ask_ahead(isa, weights);
            let mut values = [arch::_mm512_setzero_si512(); GROUP];
            for (value, panel) in values.iter_mut().zip(weights) {
                // SAFETY: a panel is a register's sixteen pairs and lies at a multiple of its size.
                *value = unsafe { arch::_mm512_load_si512(panel.0.as_ptr().cast()) };
            }
            for r in 0..MR {
                let x = arch::_mm512_set1_epi32(rows[r][k].cast_signed());
                for p in 0..GROUP {
                    // SAFETY: pairs of bf16 are thirty-two bits, any of which are numbers.
                    let (x, value) = unsafe {
                        (
                            std::mem::transmute::<arch::__m512i, arch::__m512bh>(x),
                            std::mem::transmute::<arch::__m512i, arch::__m512bh>(values[p]),
                        )
                    };
                    in_registers[r][p] = arch::_mm512_dpbf16_ps(in_registers[r][p], x, value);
                }
            }
        }
        *sums = in_registers;
    }
}
