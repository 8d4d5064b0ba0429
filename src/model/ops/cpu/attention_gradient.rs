//! The gradients of attention.
//!
//! Probabilities are computed again, sixteen query rows at a time, over all keys that these rows see.
//! One task owns a key-value head, so that every sum over query rows runs in row order.

use rayon::prelude::*;

use super::super::attention::{AttentionLayout, Heads, Segment};
use super::attention::copy_rows;
use super::entry::Kernel;
use super::instruction_set::{LANES, Machine};
use super::lane_block::{mix, products, spread, turn, turn_back};
use super::lane_rows::LaneRows;
use super::vector_functions::exp;
use super::vector_math::{Lanes, VectorMath};

/// The gradients of q, k and v, shaped as they are. `slices`: q, k, v and the gradient of the result.
pub fn backward(slices: [&[f32]; 4], heads: Heads, layout: &AttentionLayout) -> [Vec<f32>; 3] {
    Machine::here().enter(Backward {
        slices,
        heads,
        layout,
    })
}

#[derive(Clone, Copy)]
struct Backward<'a> {
    slices: [&'a [f32]; 4],
    heads: Heads,
    layout: &'a AttentionLayout,
}

impl Kernel for Backward<'_> {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) -> [Vec<f32>; 3] {
        backward_with(isa, self)
    }
}

/// [`backward`], each task of which is compiled for the set.
fn backward_with<S: VectorMath>(isa: S, whole: Backward) -> [Vec<f32>; 3] {
    let heads = whole.heads;
    let [q, k, ..] = whole.slices;
    let (dim, group) = (heads.head_dim, heads.group());
    let (n_rows, n_keys) = (q.len() / heads.width(), k.len() / heads.kv_width());
    let per_head: Vec<[Vec<f32>; 3]> = (0..heads.n_kv_heads)
        .into_par_iter()
        .map(|kv_head| isa.enter(BackwardOfHead { whole, kv_head }))
        .collect();
    let gather = |which: usize, n: usize, part: usize| {
        let mut whole = vec![0f32; n * part * heads.n_kv_heads];
        for (kv_head, parts) in per_head.iter().enumerate() {
            for (row, values) in parts[which].chunks_exact(part).enumerate() {
                let start = (row * heads.n_kv_heads + kv_head) * part;
                whole[start..start + part].copy_from_slice(values);
            }
        }
        whole
    };
    [
        gather(0, n_rows, group * dim),
        gather(1, n_keys, dim),
        gather(2, n_keys, dim),
    ]
}

/// What one task computes.
struct BackwardOfHead<'a> {
    whole: Backward<'a>,
    kv_head: usize,
}

impl Kernel for BackwardOfHead<'_> {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) -> [Vec<f32>; 3] {
        let Backward {
            slices,
            heads,
            layout,
        } = self.whole;
        let [q, k, ..] = slices;
        let (dim, n_rows) = (heads.head_dim, q.len() / heads.width());
        let n_keys = k.len() / heads.kv_width();
        let mut gradients = HeadGradients {
            dq: vec![0f32; n_rows * heads.group() * dim],
            dk: vec![0f32; n_keys * dim],
            dv: vec![0f32; n_keys * dim],
            ..HeadGradients::default()
        };
        for (segment, keys) in layout.parts() {
            let part = (segment, keys, layout);
            gradients.add_segment(isa, slices, (self.kv_head, heads), part);
        }
        [gradients.dq, gradients.dk, gradients.dv]
    }
}

/// The gradients of one key-value head: `[rows, group * dim]`, and `[keys, dim]` twice.
#[derive(Default)]
struct HeadGradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    segment: SegmentHead,
    scratch: Scratch,
}

/// One head's keys and values of a segment, side by side, and the segment's gradients of them.
#[derive(Default)]
struct SegmentHead {
    keys: Vec<f32>,
    values: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// What every block of query rows needs, by key or by column.
#[derive(Default)]
struct Scratch {
    rows: LaneRows,
    probabilities: Vec<Lanes>,
    deltas: Vec<Lanes>,
    columns: Vec<Lanes>,
}

impl HeadGradients {
    #[inline(always)]
    fn add_segment<S: VectorMath>(
        &mut self,
        isa: S,
        [q, k, v, grad]: [&[f32]; 4],
        (kv_head, heads): (usize, Heads),
        (segment, keys, layout): (&Segment, &[u32], &AttentionLayout),
    ) {
        let (dim, width, group) = (heads.head_dim, heads.width(), heads.group());
        let columns = kv_head * dim..(kv_head + 1) * dim;
        let side_by_side = &mut self.segment;
        let place = (heads.kv_width(), &columns);
        copy_rows(isa, (k, place), keys, &mut side_by_side.keys);
        copy_rows(isa, (v, place), keys, &mut side_by_side.values);
        for gradient in [&mut side_by_side.dk, &mut side_by_side.dv] {
            gradient.clear();
            gradient.resize(keys.len() * dim, 0.0);
        }
        for (in_group, head) in heads.sharing(kv_head).enumerate() {
            for first in segment.rows.clone().step_by(LANES) {
                let rows = first..(first + LANES).min(segment.rows.end);
                let [queries, grads] = [q, grad].map(|matrix| {
                    let mut rows = rows.clone();
                    std::array::from_fn(|_| match rows.next() {
                        Some(row) => &matrix[row * width + head * dim..][..dim],
                        None => &[],
                    })
                });
                self.scratch
                    .rows
                    .see(&rows, |row| layout.visible(segment, row));
                let start = (rows.start * group + in_group) * dim;
                let mut dq = self.dq[start..].chunks_mut(group * dim).take(rows.len());
                let mut dq = std::array::from_fn(|_| match dq.next() {
                    Some(row) => &mut row[..dim],
                    None => &mut [],
                });
                self.scratch
                    .add_rows(isa, [queries, grads], (side_by_side, heads), &mut dq);
            }
        }
        for (whole, part) in [
            (&mut self.dk, &side_by_side.dk),
            (&mut self.dv, &side_by_side.dv),
        ] {
            for (key, part) in keys.iter().zip(part.chunks_exact(dim)) {
                let whole = &mut whole[*key as usize * dim..][..dim];
                for (whole, part) in whole.iter_mut().zip(part) {
                    *whole += part;
                }
            }
        }
    }
}

impl Scratch {
    /// Adds what sixteen rows, whose positions `self.rows` knows, give to the segment's gradients, and
    /// writes their own. Missing rows are empty.
    #[inline(always)]
    fn add_rows<S: VectorMath>(
        &mut self,
        isa: S,
        [queries, grads]: [[&[f32]; LANES]; 2],
        (segment, heads): (&mut SegmentHead, Heads),
        dq: &mut [&mut [f32]; LANES],
    ) {
        let dim = heads.head_dim;
        let seen = self.rows.positions();
        let elements = seen.start * dim..seen.end * dim;
        let (keys, values) = (
            &segment.keys[elements.clone()],
            &segment.values[elements.clone()],
        );
        self.rows.start(isa, queries, heads);
        self.probabilities.resize(seen.len(), [0.0; LANES]);
        self.rows.scores(isa, &seen, keys, &mut self.probabilities);
        softmax(isa, &mut self.probabilities);

        self.columns.resize(dim, [0.0; LANES]);
        turn(isa, grads, 1.0, &mut self.columns);
        self.deltas.resize(seen.len(), [0.0; LANES]);
        products(isa, values, &self.columns, &mut self.deltas);
        let mut mean = isa.splat(0.0);
        for (p, delta) in self.probabilities.iter().zip(&self.deltas) {
            mean = isa.multiply_add(isa.load(p), isa.load(delta), mean);
        }
        let scale = isa.splat(heads.scale);
        for (p, delta) in self.probabilities.iter().zip(&mut self.deltas) {
            let centred = isa.subtract(isa.load(delta), mean);
            let product = isa.multiply(isa.multiply(isa.load(p), centred), scale);
            isa.store(product, delta);
        }
        mix(isa, keys, &self.deltas, &mut self.columns);
        turn_back(isa, &self.columns, &[1.0; LANES], dq);
        let n_rows = queries.iter().filter(|query| !query.is_empty()).count();
        let (dk, dv) = (&mut segment.dk, &mut segment.dv);
        spread(
            isa,
            &self.deltas,
            &queries[..n_rows],
            dim,
            &mut dk[elements.clone()],
        );
        spread(
            isa,
            &self.probabilities,
            &grads[..n_rows],
            dim,
            &mut dv[elements],
        );
    }
}

/// Softmax over keys, lane by lane.
#[inline(always)]
fn softmax<S: VectorMath>(isa: S, scores: &mut [Lanes]) {
    let mut largest = isa.splat(f32::NEG_INFINITY);
    for score in scores.iter() {
        largest = isa.larger(largest, isa.load(score));
    }
    let mut total = isa.splat(0.0);
    for score in scores.iter_mut() {
        let p = exp(isa, isa.subtract(isa.load(score), largest));
        total = isa.add(total, p);
        isa.store(p, score);
    }
    let mut totals = [0.0; LANES];
    isa.store(total, &mut totals);
    let scale = isa.load(&totals.map(f32::recip));
    for score in scores.iter_mut() {
        isa.store(isa.multiply(isa.load(score), scale), score);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::attention::Mask;
    use super::super::entry::on_every_set;
    use super::*;

    #[test]
    fn gradients_are_the_same_with_every_instruction_set() {
        let segments =
            [(0..1, 0..1), (1..24, 1..70), (24..40, 70..86)].map(|(rows, keys)| Segment {
                rows,
                keys: vec![keys],
            });
        let values = |n: usize, seed: f32| -> Vec<f32> {
            (0..n).map(|i| (i as f32 * seed).sin() * 2.0).collect()
        };
        for dim in [16, 20] {
            let heads = Heads::new(4, 2, dim);
            let (n_q, n_k) = (40 * heads.width(), 86 * heads.kv_width());
            let [q, grad] = [0.37, 0.73].map(|seed| values(n_q, seed));
            let [k, v] = [0.11, 0.53].map(|seed| values(n_k, seed));
            for mask in [
                Mask::Bidirectional,
                Mask::Causal { window: None },
                Mask::Causal { window: Some(7) },
            ] {
                let layout = &AttentionLayout::new(segments.to_vec(), mask).unwrap();
                let slices = [&*q, &*k, &*v, &*grad];
                let outputs = on_every_set(Backward {
                    slices,
                    heads,
                    layout,
                });
                let [dq, dk, dv] = &outputs[0];
                assert!(dq.iter().chain(dk).chain(dv).all(|x| x.is_finite()));
                assert!(dq.iter().any(|x| *x != 0.0));
                assert!(outputs.iter().all(|output| *output == outputs[0]));
            }
        }
    }
}
