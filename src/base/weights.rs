//! The types that a base's frozen linear maps can be held in: their names, and what they take.
//!
//! It knows shapes, no files and no kernels.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use half::bf16;
use mistralrs_quant::IsqType;
use thiserror::Error;

use crate::model::kv_cache::KvType;
use crate::model::ops::Kernels;
use crate::model::ops::frozen_linear::{Packed, PackedWeight, Paired};

/// How frozen linear maps are held. Norms and biases are f32 always; embedding tables are f32 with `F32`
/// and sixteen bits wide with all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// Exactly what the checkpoint holds.
    F32,
    /// Rounded to bf16. Exact for a checkpoint in bf16. A device also rounds the rows before and behind each map
    /// to bf16; sums are in f32.
    Bf16,
    /// Rounded to bf16, as are the rows that they multiply; sums are in f32. Only for processors with
    /// AVX512_BF16, which multiply bf16 twice as fast as f32. Rounding rows costs accuracy also where the
    /// checkpoint is in bf16. Logits of the phantom base move 1.3 times as far from those of f32 as with
    /// `Bf16` on average, and less than half as far as with `Int8`.
    Bf16Dot,
    /// Eight bits with a scale per output and 64 inputs; sums are in f32.
    Int8,
    /// A block format of `mistralrs-quant`, see [`Blocks`]; rows are rounded to eight bits before they are
    /// multiplied.
    Blocks(Blocks),
}

/// The block formats: weights in blocks of 32 or 256 inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// 8 bits, blocks of 32.
    Q8_0,
    /// 5 bits, blocks of 32, with an offset.
    Q5_1,
    /// 5 bits, blocks of 32.
    Q5_0,
    /// 4 bits, blocks of 32, with an offset.
    Q4_1,
    /// 4 bits, blocks of 32.
    Q4_0,
    /// 6 bits, blocks of 256.
    Q6K,
    /// 5 bits, blocks of 256.
    Q5K,
    /// 4 bits, blocks of 256.
    Q4K,
    /// 3 bits, blocks of 256.
    Q3K,
    /// 2 bits, blocks of 256.
    Q2K,
}

const NAMES: [(&str, WeightType); 14] = [
    ("f32", WeightType::F32),
    ("bf16", WeightType::Bf16),
    ("bf16-dot", WeightType::Bf16Dot),
    ("int8", WeightType::Int8),
    ("q8_0", WeightType::Blocks(Blocks::Q8_0)),
    ("q6k", WeightType::Blocks(Blocks::Q6K)),
    ("q5k", WeightType::Blocks(Blocks::Q5K)),
    ("q5_1", WeightType::Blocks(Blocks::Q5_1)),
    ("q5_0", WeightType::Blocks(Blocks::Q5_0)),
    ("q4k", WeightType::Blocks(Blocks::Q4K)),
    ("q4_1", WeightType::Blocks(Blocks::Q4_1)),
    ("q4_0", WeightType::Blocks(Blocks::Q4_0)),
    ("q3k", WeightType::Blocks(Blocks::Q3K)),
    ("q2k", WeightType::Blocks(Blocks::Q2K)),
];

/// A word that names no type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{word}` is no type of weights; choose one of {}", names().join(", "))]
pub struct UnknownWeightType {
    word: String,
}

fn names() -> Vec<&'static str> {
    NAMES.iter().map(|(name, _)| *name).collect()
}

impl FromStr for WeightType {
    type Err = UnknownWeightType;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = NAMES.iter().find(|(name, _)| *name == word);
        let unknown = || UnknownWeightType { word: word.into() };
        found.map(|(_, one)| *one).ok_or_else(unknown)
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = NAMES.iter().find(|(_, one)| one == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

impl WeightType {
    /// All types.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(_, one)| *one)
    }

    /// What keys and values are kept as beside such weights, unless somebody chooses.
    pub fn default_kv(self) -> KvType {
        match self {
            Self::F32 => KvType::F32,
            _ => KvType::Bf16,
        }
    }

    /// The type that a map of `n_in` inputs is held in: this one, or where its blocks do not divide the
    /// inputs `int8` with our own kernels and f32 with a device's.
    pub fn for_inputs(self, n_in: usize, kernels: Kernels) -> Self {
        match (self, kernels) {
            (Self::Blocks(blocks), _) if n_in.is_multiple_of(blocks.dtype().block_size()) => self,
            (Self::Blocks(_), Kernels::Fused) => Self::Int8,
            (Self::Blocks(_), Kernels::Composed) => Self::F32,
            _ => self,
        }
    }

    /// Bytes of the weight of a map, without its bias.
    pub fn bytes(self, (n_out, n_in): (usize, usize), kernels: Kernels) -> usize {
        match (self.for_inputs(n_in, kernels), kernels) {
            (Self::Blocks(blocks), _) => {
                let dtype = blocks.dtype();
                n_out * n_in / dtype.block_size() * dtype.type_size()
            }
            (Self::Bf16, Kernels::Composed) => n_out * n_in * 2,
            (_, Kernels::Composed) => n_out * n_in * 4,
            (Self::F32, Kernels::Fused) => Packed::<f32>::bytes_of(n_out, n_in),
            (Self::Bf16, Kernels::Fused) => Packed::<bf16>::bytes_of(n_out, n_in),
            (Self::Bf16Dot, Kernels::Fused) => Paired::bytes_of(n_out, n_in),
            (Self::Int8, Kernels::Fused) => Packed::<i8>::bytes_of(n_out, n_in),
        }
    }

    /// The type of rows before and behind the maps of a model: bf16 where a device multiplies that.
    pub fn activations(self, kernels: Kernels) -> DType {
        match (self, kernels) {
            (Self::Bf16, Kernels::Composed) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Bytes of an element of a table whose rows are looked up.
    pub fn table_bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Whether the type is one of our own kernels', which other devices do not have.
    pub fn needs_fused_kernels(self) -> bool {
        matches!(self, Self::Bf16Dot | Self::Int8)
    }

    /// Whether this machine's processor has the instructions that our own kernels need for the type.
    pub fn runs_here(self) -> bool {
        self != Self::Bf16Dot || Paired::runs_here()
    }

    /// How far a logit may lie from that of f32, as a share of the largest expected magnitude, before an
    /// adapter's self-test fails: about three times the worst that the phantom's adapters show on the
    /// phantom base, for bf16 where rows are rounded too, as on a device, and less than the 32 % by which its
    /// most alike adapters differ (`tests/suite/weights_self_test.rs`).
    pub fn tolerance(self) -> f32 {
        match self {
            Self::F32 => 1e-3,
            Self::Bf16 => 2.5e-2,
            Self::Bf16Dot => 3.5e-2,
            Self::Int8 => 5e-2,
            Self::Blocks(blocks) => blocks.tolerance(),
        }
    }
}

impl Blocks {
    /// The type's name in `mistralrs-quant`.
    pub fn isq(self) -> IsqType {
        match self {
            Self::Q8_0 => IsqType::Q8_0,
            Self::Q5_1 => IsqType::Q5_1,
            Self::Q5_0 => IsqType::Q5_0,
            Self::Q4_1 => IsqType::Q4_1,
            Self::Q4_0 => IsqType::Q4_0,
            Self::Q6K => IsqType::Q6K,
            Self::Q5K => IsqType::Q5K,
            Self::Q4K => IsqType::Q4K,
            Self::Q3K => IsqType::Q3K,
            Self::Q2K => IsqType::Q2K,
        }
    }

    fn dtype(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q2K => GgmlDType::Q2K,
        }
    }

    fn tolerance(self) -> f32 {
        match self {
            Self::Q8_0 => 8e-2,
            Self::Q6K => 1.2e-1,
            Self::Q5_1 | Self::Q5_0 | Self::Q5K => 2e-1,
            // Fewer bits would need more room than there is between two adapters.
            Self::Q4_1 | Self::Q4_0 | Self::Q4K | Self::Q3K | Self::Q2K => 2.5e-1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_told_the_choices() {
        for one in WeightType::all() {
            assert_eq!(one.to_string().parse(), Ok(one));
        }
        let error = "int4".parse::<WeightType>().unwrap_err().to_string();
        assert!(
            error.starts_with(
                "`int4` is no type of weights; choose one of f32, bf16, bf16-dot, int8,"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_type_takes_what_its_bits_say() {
        let shape = (1024, 4096);
        let bits = |word: &str| {
            let one: WeightType = word.parse().unwrap();
            one.bytes(shape, Kernels::Fused) as f64 * 8.0 / (1024.0 * 4096.0)
        };
        let want = [
            ("f32", 32.0),
            ("bf16", 16.0),
            ("bf16-dot", 16.0),
            ("int8", 8.5),
            ("q8_0", 8.5),
            ("q6k", 6.5625),
            ("q4k", 4.5),
            ("q4_0", 4.5),
        ];
        for (word, want) in want {
            assert_eq!(bits(word), want, "{word}");
        }
    }

    #[test]
    fn what_blocks_do_not_divide_is_held_otherwise() {
        let q4k: WeightType = "q4k".parse().unwrap();
        assert_eq!(q4k.for_inputs(512, Kernels::Fused), q4k);
        assert_eq!(q4k.for_inputs(96, Kernels::Fused), WeightType::Int8);
        assert_eq!(q4k.for_inputs(96, Kernels::Composed), WeightType::F32);
    }
}
