//! The gradients of attention.
//!
//! Probabilities are computed again, sixteen query rows at a time, over all keys that these rows see.
//! One task owns a key-value head, so that every sum over query rows runs in row order.

use rayon::prelude::*;

use super::super::attention::{AttentionLayout, Heads, Segment};
use super::attention::{LaneRows, copy_rows};
use super::lane_block::{mix, products, spread, turn, turn_back};
use super::vector::{LANES, Lanes, Vector};

/// The gradients of q, k and v, shaped as they are. `slices`: q, k, v and the gradient of the result.
pub fn backward(slices: [&[f32]; 4], heads: Heads, layout: &AttentionLayout) -> [Vec<f32>; 3] {
    let [q, k, ..] = slices;
    let (dim, group) = (heads.head_dim, heads.group());
    let (n_rows, n_keys) = (q.len() / heads.width(), k.len() / heads.kv_width());
    let per_head: Vec<[Vec<f32>; 3]> = (0..heads.n_kv_heads)
        .into_par_iter()
        .map(|kv_head| {
            let mut gradients = HeadGradients {
                dq: vec![0f32; n_rows * group * dim],
                dk: vec![0f32; n_keys * dim],
                dv: vec![0f32; n_keys * dim],
                ..HeadGradients::default()
            };
            for (segment, keys) in layout.parts() {
                gradients.add_segment(slices, (kv_head, heads), (segment, keys, layout));
            }
            [gradients.dq, gradients.dk, gradients.dv]
        })
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
    fn add_segment(
        &mut self,
        [q, k, v, grad]: [&[f32]; 4],
        (kv_head, heads): (usize, Heads),
        (segment, keys, layout): (&Segment, &[u32], &AttentionLayout),
    ) {
        let (dim, width, group) = (heads.head_dim, heads.width(), heads.group());
        let columns = kv_head * dim..(kv_head + 1) * dim;
        let side_by_side = &mut self.segment;
        copy_rows(
            k,
            (heads.kv_width(), &columns),
            keys,
            &mut side_by_side.keys,
        );
        copy_rows(
            v,
            (heads.kv_width(), &columns),
            keys,
            &mut side_by_side.values,
        );
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
                    .add_rows([queries, grads], side_by_side, heads, &mut dq);
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
    fn add_rows(
        &mut self,
        [queries, grads]: [[&[f32]; LANES]; 2],
        segment: &mut SegmentHead,
        heads: Heads,
        dq: &mut [&mut [f32]; LANES],
    ) {
        let dim = heads.head_dim;
        let seen = self.rows.positions();
        let elements = seen.start * dim..seen.end * dim;
        let (keys, values) = (
            &segment.keys[elements.clone()],
            &segment.values[elements.clone()],
        );
        self.rows.start(queries, heads);
        self.probabilities.resize(seen.len(), [0.0; LANES]);
        self.rows.scores(&seen, keys, &mut self.probabilities);
        softmax(&mut self.probabilities);

        self.columns.resize(dim, [0.0; LANES]);
        turn(grads, 1.0, &mut self.columns);
        self.deltas.resize(seen.len(), [0.0; LANES]);
        products(values, &self.columns, &mut self.deltas);
        let mut mean = Vector::splat(0.0);
        for (p, delta) in self.probabilities.iter().zip(&self.deltas) {
            mean = Vector::load(p).times_plus(Vector::load(delta), mean);
        }
        let scale = Vector::splat(heads.scale);
        for (p, delta) in self.probabilities.iter().zip(&mut self.deltas) {
            let centred = Vector::load(delta).minus(mean);
            Vector::load(p).times(centred).times(scale).store(delta);
        }
        mix(keys, &self.deltas, &mut self.columns);
        turn_back(&self.columns, &[1.0; LANES], dq);
        let n_rows = queries.iter().filter(|query| !query.is_empty()).count();
        let (dk, dv) = (&mut segment.dk, &mut segment.dv);
        spread(
            &self.deltas,
            &queries[..n_rows],
            dim,
            &mut dk[elements.clone()],
        );
        spread(
            &self.probabilities,
            &grads[..n_rows],
            dim,
            &mut dv[elements],
        );
    }
}

/// Softmax over keys, lane by lane.
fn softmax(scores: &mut [Lanes]) {
    let mut largest = Vector::splat(f32::NEG_INFINITY);
    for score in scores.iter() {
        largest = largest.larger(Vector::load(score));
    }
    let mut total = Vector::splat(0.0);
    for score in scores.iter_mut() {
        let p = Vector::load(score).minus(largest).exp();
        total = total.plus(p);
        p.store(score);
    }
    let mut totals = [0.0; LANES];
    total.store(&mut totals);
    let scale = Vector::load(&totals.map(f32::recip));
    for score in scores.iter_mut() {
        Vector::load(score).times(scale).store(score);
    }
}
