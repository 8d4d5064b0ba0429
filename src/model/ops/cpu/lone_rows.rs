//! Attention of query rows that are alone with their keys, as in decoding: bound by reading the keys.
//!
//! In: a row and one block of its keys. Out: for each head the block's softmax and sum of values, which
//! [`add_up`] adds in the order of positions. So the blocks of one row can be shared among threads, and
//! each is read in the order in which it lies in memory, all heads together. All is inlined into a
//! [`super::entry::Kernel`].

use super::super::attention::Heads;
use super::attention::Input;
use super::element::Element;
use super::online_softmax::{KEY_BLOCK, OnlineSoftmax};
use super::vector_functions::{add_scaled, dot, four_dots};
use super::vector_math::VectorMath;

/// A query row and those of its keys that lie in one block.
pub struct Unit<'a> {
    /// The query row.
    pub row: usize,
    /// The place of the first key in the block.
    pub place: usize,
    /// The rows of the keys.
    pub keys: &'a [u32],
}

impl Unit<'_> {
    /// The numbers that come out: for each head the largest score, the sum of exponentials, and the
    /// sums of values.
    pub fn n_sums(heads: Heads) -> usize {
        heads.n_heads * (2 + heads.head_dim)
    }

    /// Fills `sums`, which are 0.
    #[inline(always)]
    pub fn compute<S: VectorMath, E: Element>(
        &self,
        isa: S,
        Input { q, k, v, heads }: Input<E>,
        scores: &mut Vec<[f32; KEY_BLOCK]>,
        sums: &mut [f32],
    ) {
        let (dim, group) = (heads.head_dim, heads.group());
        scores.clear();
        scores.resize(heads.n_heads, [f32::NEG_INFINITY; KEY_BLOCK]);
        let query: Vec<f32> = q[self.row * heads.width()..][..heads.width()]
            .iter()
            .map(|q| q * heads.scale)
            .collect();
        let row = |matrix, key: u32| row_of(matrix, key, heads.kv_width());
        let (fours, rest) = self.keys.as_chunks::<4>();
        let places = (self.place..).step_by(4);
        let place_of_rest = self.place + 4 * fours.len();

        // Key by key over all heads, because that is how keys lie in memory.
        for (place, key) in (self.place..).zip(self.keys) {
            let of_heads = row(k, *key).chunks_exact(dim);
            let groups = query
                .chunks_exact(group * dim)
                .zip(scores.chunks_exact_mut(group));
            for (key, (queries, scores)) in of_heads.zip(groups) {
                // Queries that share a key read it together.
                let (fours, rest) = scores.as_chunks_mut::<4>();
                let mut queries = queries.chunks_exact(dim);
                for scores in fours {
                    let four = std::array::from_fn(|_| queries.next().unwrap_or_default());
                    for (scores, score) in scores.iter_mut().zip(four_dots(isa, four, key)) {
                        scores[place] = score;
                    }
                }
                for (scores, query) in rest.iter_mut().zip(queries) {
                    scores[place] = dot(isa, query, key);
                }
            }
        }
        for (scores, sums) in scores.iter_mut().zip(sums.chunks_exact_mut(2 + dim)) {
            let OnlineSoftmax { largest, total } = OnlineSoftmax::<f32>::of(isa, scores);
            (sums[0], sums[1]) = (largest, total);
        }
        for (place, keys) in places.zip(fours) {
            let values = keys.map(|key| row(v, key));
            add_values(isa, values, (scores, place), heads, sums);
        }
        for (place, key) in (place_of_rest..).zip(rest) {
            add_values(isa, [row(v, *key)], (scores, place), heads, sums);
        }
    }
}

fn row_of<E>(matrix: &[E], row: u32, width: usize) -> &[E] {
    &matrix[row as usize * width..][..width]
}

/// Adds the values of `N` neighbouring keys, all heads.
#[inline(always)]
fn add_values<S: VectorMath, E: Element, const N: usize>(
    isa: S,
    values: [&[E]; N],
    (scores, place): (&[[f32; KEY_BLOCK]], usize),
    heads: Heads,
    sums: &mut [f32],
) {
    let (dim, group) = (heads.head_dim, heads.group());
    for (head, (scores, sums)) in scores
        .iter()
        .zip(sums.chunks_exact_mut(2 + dim))
        .enumerate()
    {
        let first = head / group * dim;
        let weights = std::array::from_fn(|i| scores[place + i]);
        add_scaled(
            isa,
            &mut sums[2..],
            weights,
            values.map(|row| &row[first..first + dim]),
        );
    }
}

/// Adds up the blocks of each row and writes it to `out`. `units`: the blocks of a row follow each
/// other. `sums`: what [`Unit::compute`] filled.
#[inline(always)]
pub fn add_up<S: VectorMath>(isa: S, units: &[Unit], sums: &[f32], heads: Heads, out: &mut [f32]) {
    let (dim, n_sums) = (heads.head_dim, Unit::n_sums(heads));
    let mut first = 0;
    for of_row in units.chunk_by(|one, other| one.row == other.row) {
        let end = first + of_row.len();
        let out = &mut out[of_row[0].row * heads.width()..][..heads.width()];
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let mut softmax = OnlineSoftmax::<f32>::default();
            for unit in first..end {
                let block = &sums[unit * n_sums + head * (2 + dim)..][..2 + dim];
                let scales = softmax.add(
                    isa,
                    OnlineSoftmax {
                        largest: block[0],
                        total: block[1],
                    },
                );
                for (sum, block) in out.iter_mut().zip(&block[2..]) {
                    *sum = isa.multiply_add_one(*sum, scales.before, block * scales.block);
                }
            }
            let normaliser = softmax.normaliser();
            for out in out {
                *out *= normaliser;
            }
        }
        first = end;
    }
}
