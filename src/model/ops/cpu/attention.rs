//! Attention over ragged segments: scores, softmax and the weighted sum of values, and their gradients.
//!
//! Each query row and head is computed alone, over its keys in the order of their positions, so the
//! result does not depend on the other rows of the batch, nor on where the keys lie in memory.

use std::ops::Range;

use rayon::prelude::*;

use super::super::attention::{AttentionLayout, Heads, Segment};
use super::lanes::{add_scaled, dot, exp, max, sum};

/// Query rows that one task handles, so that a head's keys are read from cache by all of them.
const ROW_BLOCK: usize = 16;

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
        for first in segment.rows.clone().step_by(ROW_BLOCK) {
            let rows = first..(first + ROW_BLOCK).min(segment.rows.end);
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
        .for_each_init(Vec::new, |scores, task| {
            for head in 0..heads.n_heads {
                let kv = heads.kv_columns(head);
                for (i, row) in task.rows.clone().enumerate() {
                    let columns = head * heads.head_dim..(head + 1) * heads.head_dim;
                    let q = &q[row * width..][columns.clone()];
                    let visible = layout.visible(task.segment, row);
                    probabilities(q, k, &kv, heads, (task.segment, visible.clone()), scores);
                    let out = &mut task.out[i * width..][columns];
                    for (key, p) in keys(task.segment, visible).zip(scores.iter()) {
                        add_scaled(out, *p, &v[key * kv.stride..][kv.columns.clone()]);
                    }
                }
            }
        });
    out
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

fn probabilities(
    q: &[f32],
    k: &[f32],
    kv: &KvColumns,
    heads: Heads,
    (segment, visible): (&Segment, Range<usize>),
    scores: &mut Vec<f32>,
) {
    scores.clear();
    scores.extend(
        keys(segment, visible)
            .map(|key| dot(q, &k[key * kv.stride..][kv.columns.clone()]) * heads.scale),
    );
    let largest = max(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let total = sum(scores).recip();
    for score in scores.iter_mut() {
        *score *= total;
    }
}

/// The gradients of q, k and v, shaped as they are.
///
/// One task owns a key-value head, so that every sum over query rows runs in row order.
pub fn backward(
    [q, k, v, grad]: [&[f32]; 4],
    heads: Heads,
    layout: &AttentionLayout,
) -> [Vec<f32>; 3] {
    let dim = heads.head_dim;
    let (width, kv_width) = (heads.n_heads * dim, heads.n_kv_heads * dim);
    let (n_rows, n_keys) = (q.len() / width, k.len() / kv_width);
    let group = heads.n_heads / heads.n_kv_heads;
    let per_head: Vec<[Vec<f32>; 3]> = (0..heads.n_kv_heads)
        .into_par_iter()
        .map(|kv_head| {
            let mut dq = vec![0f32; n_rows * group * dim];
            let (mut dk, mut dv) = (vec![0f32; n_keys * dim], vec![0f32; n_keys * dim]);
            let (mut scores, mut deltas) = (Vec::new(), Vec::new());
            for in_group in 0..group {
                let head = kv_head * group + in_group;
                let kv = heads.kv_columns(head);
                for segment in layout.segments() {
                    for row in segment.rows.clone() {
                        let visible = layout.visible(segment, row);
                        let columns = row * width + head * dim..row * width + (head + 1) * dim;
                        let (q, grad) = (&q[columns.clone()], &grad[columns]);
                        probabilities(q, k, &kv, heads, (segment, visible.clone()), &mut scores);
                        deltas.clear();
                        deltas.extend(
                            keys(segment, visible.clone())
                                .map(|key| dot(grad, &v[key * kv.stride..][kv.columns.clone()])),
                        );
                        let mean = dot(&scores, &deltas);
                        let dq = &mut dq[(row * group + in_group) * dim..][..dim];
                        for ((key, p), delta) in keys(segment, visible).zip(&scores).zip(&deltas) {
                            let ds = p * (delta - mean) * heads.scale;
                            add_scaled(dq, ds, &k[key * kv.stride..][kv.columns.clone()]);
                            add_scaled(&mut dk[key * dim..][..dim], ds, q);
                            add_scaled(&mut dv[key * dim..][..dim], *p, grad);
                        }
                    }
                }
            }
            [dq, dk, dv]
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
