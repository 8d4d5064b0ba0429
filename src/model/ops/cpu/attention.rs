//! Attention over ragged segments: scores, softmax and the weighted sum of values, and their gradients.
//!
//! Each query row and head is computed alone, over its keys in the order of their positions, so the
//! result does not depend on the other rows of the batch, nor on where the keys lie in memory. Rows of
//! one segment are worked on sixteen at a time, a vector lane each; where a segment has few rows
//! (decoding), row by row. Both ways add the same numbers in the same order and give the same bits.

use std::ops::Range;

use rayon::prelude::*;

use super::super::attention::{AttentionLayout, Heads, Segment};
use super::lane_block::{KeyRows, LANES, Lanes, mix, products, spread, turn, turn_back};
use super::lanes::{add_scaled, dot, exp, max};

/// Segments of fewer rows are computed row by row.
const MIN_BLOCK: usize = 4;

struct Task<'a> {
    segment: &'a Segment,
    rows: Range<usize>,
    out: &'a mut [f32],
}

/// `[rows, n_heads * head_dim]` from `q` of that shape and `k`, `v` of `[keys, n_kv_heads * head_dim]`.
pub fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: Heads,
    layout: &AttentionLayout,
) -> Vec<f32> {
    let width = heads.n_heads * heads.head_dim;
    let mut out = vec![0f32; q.len()];
    let mut tasks = Vec::new();
    let mut rest = out.as_mut_slice();
    for segment in layout.segments() {
        for first in segment.rows.clone().step_by(LANES) {
            let rows = first..(first + LANES).min(segment.rows.end);
            let (block, tail) = rest.split_at_mut(rows.len() * width);
            tasks.push(Task {
                segment,
                rows,
                out: block,
            });
            rest = tail;
        }
    }
    tasks
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, task| {
            let dim = heads.head_dim;
            for head in 0..heads.n_heads {
                let kv = heads.kv_columns(head);
                let columns = head * dim..(head + 1) * dim;
                if task.segment.rows.len() < MIN_BLOCK {
                    for (i, row) in task.rows.clone().enumerate() {
                        let visible = layout.visible(task.segment, row);
                        let Scratch { query, scores, .. } = scratch;
                        query.clear();
                        query.extend(
                            q[row * width..][columns.clone()]
                                .iter()
                                .map(|q| q * heads.scale),
                        );
                        probabilities(query, k, &kv, (task.segment, visible.clone()), scores);
                        let out = &mut task.out[i * width..][columns.clone()];
                        for (key, p) in keys(task.segment, visible).zip(scores.iter()) {
                            add_scaled(out, *p, &v[key * kv.stride..][kv.columns.clone()]);
                        }
                    }
                    continue;
                }
                let rows = task
                    .rows
                    .clone()
                    .map(|row| &q[row * width..][columns.clone()]);
                scratch.probabilities(rows, k, &kv, (task.segment, &task.rows, layout), heads);
                let values = KeyRows {
                    matrix: v,
                    starts: &scratch.starts,
                    dim,
                };
                scratch.columns.resize(dim, [0.0; LANES]);
                mix(values, &scratch.p, &mut scratch.columns);
                let out = task
                    .out
                    .chunks_exact_mut(width)
                    .map(|row| &mut row[columns.clone()]);
                turn_back(&scratch.columns, out);
            }
        });
    out
}

/// What a task needs again and again.
#[derive(Default)]
struct Scratch {
    /// One query row, scaled, and its scores.
    query: Vec<f32>,
    scores: Vec<f32>,
    /// Query rows as columns.
    columns: Vec<Lanes>,
    /// Where the block's keys begin in `k` and `v`.
    starts: Vec<usize>,
    /// Probabilities, key by key.
    p: Vec<Lanes>,
}

impl Scratch {
    /// Fills `starts` and `p` for a block of query rows; returns the positions of its keys.
    fn probabilities<'a>(
        &mut self,
        queries: impl Iterator<Item = &'a [f32]>,
        k: &[f32],
        kv: &KvColumns,
        (segment, rows, layout): (&Segment, &Range<usize>, &AttentionLayout),
        heads: Heads,
    ) -> Range<usize> {
        self.columns.resize(heads.head_dim, [0.0; LANES]);
        turn(queries, heads.scale, &mut self.columns);
        // A row further down sees the same keys or later ones.
        let mut visible: [Range<usize>; LANES] =
            std::array::from_fn(|_| layout.visible(segment, rows.end - 1));
        for (visible, row) in visible.iter_mut().zip(rows.clone()) {
            *visible = layout.visible(segment, row);
        }
        let all = visible[0].start..visible[LANES - 1].end;
        let starts = keys(segment, all.clone()).map(|key| key * kv.stride + kv.columns.start);
        self.starts.clear();
        self.starts.extend(starts);
        self.p.resize(all.len(), [0.0; LANES]);
        let key_rows = KeyRows {
            matrix: k,
            starts: &self.starts,
            dim: heads.head_dim,
        };
        products(key_rows, &self.columns, &mut self.p);

        let first: [usize; LANES] = std::array::from_fn(|lane| visible[lane].start - all.start);
        let end: [usize; LANES] = std::array::from_fn(|lane| visible[lane].end - all.start);
        let seen_by_all = *first.iter().max().unwrap_or(&0)..*end.iter().min().unwrap_or(&0);
        for (key, p) in self.p.iter_mut().enumerate() {
            if !seen_by_all.contains(&key) {
                for lane in 0..LANES {
                    if key < first[lane] || key >= end[lane] {
                        p[lane] = f32::NEG_INFINITY;
                    }
                }
            }
        }
        softmax(&mut self.p);
        all
    }
}

/// Softmax over keys, lane by lane.
fn softmax(scores: &mut [Lanes]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for score in scores.iter() {
        for (largest, score) in largest.iter_mut().zip(score) {
            *largest = if *score > *largest { *score } else { *largest };
        }
    }
    let mut total = [0f32; LANES];
    for score in scores.iter_mut() {
        for lane in 0..LANES {
            score[lane] = exp(score[lane] - largest[lane]);
            total[lane] += score[lane];
        }
    }
    let scale = total.map(f32::recip);
    for score in scores.iter_mut() {
        for (score, scale) in score.iter_mut().zip(&scale) {
            *score *= scale;
        }
    }
}

/// Where one head's keys (or values) lie in a row.
pub struct KvColumns {
    /// The length of a row.
    pub stride: usize,
    /// The head's columns in it.
    pub columns: Range<usize>,
}

/// The rows of the keys at positions `visible` of a segment.
fn keys(segment: &Segment, visible: Range<usize>) -> impl Iterator<Item = usize> + '_ {
    let mut first = 0;
    segment.keys.iter().flat_map(move |span| {
        let skip = visible.start.saturating_sub(first).min(span.len());
        let end = visible.end.saturating_sub(first).min(span.len());
        first += span.len();
        span.start + skip..span.start + end.max(skip)
    })
}

/// The probabilities of one query row, already scaled: every operation in the order of
/// [`Scratch::probabilities`], so that both give the same bits.
fn probabilities(
    q: &[f32],
    k: &[f32],
    kv: &KvColumns,
    (segment, visible): (&Segment, Range<usize>),
    scores: &mut Vec<f32>,
) {
    scores.clear();
    scores.extend(
        keys(segment, visible).map(|key| dot(q, &k[key * kv.stride..][kv.columns.clone()])),
    );
    let largest = max(scores);
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
        total += *score;
    }
    let scale = total.recip();
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

/// The gradients of q, k and v, shaped as they are.
///
/// One task owns a key-value head, so that every sum over query rows runs in row order.
pub fn backward(slices: [&[f32]; 4], heads: Heads, layout: &AttentionLayout) -> [Vec<f32>; 3] {
    let [q, k, v, _] = slices;
    let dim = heads.head_dim;
    let (width, kv_width) = (heads.n_heads * dim, heads.n_kv_heads * dim);
    let (n_rows, n_keys) = (q.len() / width, k.len() / kv_width);
    let group = heads.n_heads / heads.n_kv_heads;
    let per_head: Vec<[Vec<f32>; 3]> = (0..heads.n_kv_heads)
        .into_par_iter()
        .map(|kv_head| {
            let mut gradients = HeadGradients {
                dq: vec![0f32; n_rows * group * dim],
                dk: vec![0f32; n_keys * dim],
                dv: vec![0f32; n_keys * dim],
                ..HeadGradients::default()
            };
            for in_group in 0..group {
                for segment in layout.segments() {
                    for first in segment.rows.clone().step_by(LANES) {
                        let rows = first..(first + LANES).min(segment.rows.end);
                        let head = (kv_head * group + in_group, in_group);
                        gradients.add_block(slices, head, heads, (segment, &rows, layout));
                    }
                }
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
    debug_assert_eq!(v.len(), k.len());
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
    scratch: Scratch,
    grad_columns: Vec<Lanes>,
    deltas: Vec<Lanes>,
    /// A block's additions to `dk` or `dv`, key by key.
    block: Vec<f32>,
}

impl HeadGradients {
    fn add_block(
        &mut self,
        [q, k, v, grad]: [&[f32]; 4],
        (head, in_group): (usize, usize),
        heads: Heads,
        (segment, rows, layout): (&Segment, &Range<usize>, &AttentionLayout),
    ) {
        let dim = heads.head_dim;
        let width = heads.n_heads * dim;
        let group = heads.n_heads / heads.n_kv_heads;
        let kv = heads.kv_columns(head);
        let columns = head * dim..(head + 1) * dim;
        let mut queries: [&[f32]; LANES] = [&[]; LANES];
        let mut grads: [&[f32]; LANES] = [&[]; LANES];
        for (lane, row) in rows.clone().enumerate() {
            queries[lane] = &q[row * width..][columns.clone()];
            grads[lane] = &grad[row * width..][columns.clone()];
        }
        let (queries, grads) = (&queries[..rows.len()], &grads[..rows.len()]);

        let scratch = &mut self.scratch;
        let lanes = (segment, rows, layout);
        let seen = scratch.probabilities(queries.iter().copied(), k, &kv, lanes, heads);
        let starts = &scratch.starts;
        self.grad_columns.resize(dim, [0.0; LANES]);
        turn(grads.iter().copied(), 1.0, &mut self.grad_columns);
        self.deltas.resize(seen.len(), [0.0; LANES]);
        products(
            KeyRows {
                matrix: v,
                starts,
                dim,
            },
            &self.grad_columns,
            &mut self.deltas,
        );

        let mut mean = [0f32; LANES];
        for (p, delta) in scratch.p.iter().zip(&self.deltas) {
            for lane in 0..LANES {
                mean[lane] += p[lane] * delta[lane];
            }
        }
        for (p, delta) in scratch.p.iter().zip(&mut self.deltas) {
            for lane in 0..LANES {
                delta[lane] = p[lane] * (delta[lane] - mean[lane]) * heads.scale;
            }
        }

        // The turned queries are no longer needed: their place takes the gradient.
        mix(
            KeyRows {
                matrix: k,
                starts,
                dim,
            },
            &self.deltas,
            &mut scratch.columns,
        );
        let start = (rows.start * group + in_group) * dim;
        let dq = self.dq[start..].chunks_mut(group * dim).take(rows.len());
        turn_back(&scratch.columns, dq.map(|row| &mut row[..dim]));

        for (weights, vectors, into) in [
            (&self.deltas, queries, &mut self.dk),
            (&scratch.p, grads, &mut self.dv),
        ] {
            self.block.clear();
            self.block.resize(seen.len() * dim, 0.0);
            spread(weights, vectors, dim, &mut self.block);
            for (key, block) in keys(segment, seen.clone()).zip(self.block.chunks_exact(dim)) {
                for (into, value) in into[key * dim..][..dim].iter_mut().zip(block) {
                    *into += value;
                }
            }
        }
    }
}
