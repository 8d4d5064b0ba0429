//! Attention over ragged segments: scores, an online softmax over blocks of keys, and the weighted sum
//! of values. No more scores exist at a time than one block's.
//!
//! Each query row and head is computed alone, over its keys in the order of their positions, so the
//! result does not depend on the other rows of the batch, nor on where the keys lie in memory. Rows of
//! one segment are worked on sixteen at a time, a vector lane each (here); where a segment has few rows
//! (decoding), row by row ([`super::lone_rows`]). Both ways add the same numbers in the same order and
//! give the same bits, with every instruction set that fuses.

use std::ops::Range;

use rayon::prelude::*;

use super::super::attention::{AttentionLayout, Heads, Segment};
use super::element::Element;
use super::entry::Kernel;
use super::instruction_set::{LANES, Machine};
use super::lane_rows::LaneRows;
use super::lone_rows::{Unit, add_up};
use super::online_softmax::KEY_BLOCK;
use super::vector_math::VectorMath;

/// Segments of fewer rows are computed row by row.
const MIN_BLOCK: usize = 4;
/// Query rows (of all heads that share keys) for which a task copies a block of keys. With more, fewer
/// copies; but a task should not be long beside the whole.
const SHARING: usize = 128;
/// Query and key elements that meet below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 15;

/// `[rows, n_heads * head_dim]`.
pub fn forward<E: Element>(input: Input<E>, layout: &AttentionLayout) -> Vec<f32> {
    Machine::here().enter(Forward { input, layout })
}

/// Queries and what they meet.
#[derive(Clone, Copy)]
pub struct Input<'a, E> {
    /// `[rows, n_heads * head_dim]`.
    pub q: &'a [f32],
    /// `[keys, n_kv_heads * head_dim]`.
    pub k: &'a [E],
    /// As the keys.
    pub v: &'a [E],
    /// The shape of the heads.
    pub heads: Heads,
}

#[derive(Clone, Copy)]
struct Forward<'a, E> {
    input: Input<'a, E>,
    layout: &'a AttentionLayout,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) -> Vec<f32> {
        forward_with(isa, self)
    }
}

/// [`forward`], each task of which is compiled for the set.
fn forward_with<S: VectorMath, E: Element>(isa: S, whole: Forward<E>) -> Vec<f32> {
    let Forward { input, layout } = whole;
    let heads = input.heads;
    let mut out = vec![0f32; input.q.len()];
    let units = lone_units(layout);
    let mut unit_sums = vec![0f32; units.len() * Unit::n_sums(heads)];
    let mut tasks: Vec<Task> = units
        .iter()
        .zip(unit_sums.chunks_exact_mut(Unit::n_sums(heads).max(1)))
        .map(|(unit, sums)| Task::Lone(unit, sums))
        .collect();
    tasks.extend(lane_tasks(heads, layout).map(Task::Lanes));
    let shared = SharedOutput(out.as_mut_ptr());
    // Each kind of task is a function of its own, for which the compiler allots registers better.
    let run = |scratch: &mut Scratch, task: Task| match task {
        Task::Lone(unit, sums) => isa.enter(RunUnit {
            unit,
            input,
            scores: &mut scratch.scores,
            sums,
        }),
        Task::Lanes(task) => isa.enter(RunLanes {
            task,
            input,
            scratch,
            out: &shared,
        }),
    };
    let met: usize = layout
        .parts()
        .map(|(segment, keys)| segment.rows.len() * keys.len())
        .sum();
    if met * heads.width() < SERIAL {
        let mut scratch = Scratch::default();
        for task in tasks {
            run(&mut scratch, task);
        }
    } else {
        tasks.into_par_iter().for_each_init(Scratch::default, run);
    }
    isa.enter(AddUp {
        units: &units,
        sums: &unit_sums,
        heads,
        out: &mut out,
    });
    out
}

enum Task<'a> {
    Lone(&'a Unit<'a>, &'a mut [f32]),
    Lanes(LaneTask<'a>),
}

struct RunUnit<'a, E> {
    unit: &'a Unit<'a>,
    input: Input<'a, E>,
    scores: &'a mut Vec<[f32; KEY_BLOCK]>,
    sums: &'a mut [f32],
}

impl<E: Element> Kernel for RunUnit<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) {
        self.unit.compute(isa, self.input, self.scores, self.sums);
    }
}

struct RunLanes<'a, E> {
    task: LaneTask<'a>,
    input: Input<'a, E>,
    scratch: &'a mut Scratch,
    out: &'a SharedOutput,
}

impl<E: Element> Kernel for RunLanes<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) {
        self.task.compute(isa, self.input, self.scratch, self.out);
    }
}

struct AddUp<'a> {
    units: &'a [Unit<'a>],
    sums: &'a [f32],
    heads: Heads,
    out: &'a mut [f32],
}

impl Kernel for AddUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) {
        add_up(isa, self.units, self.sums, self.heads, self.out);
    }
}

/// The rows that are computed alone, with each block of their keys.
fn lone_units(layout: &AttentionLayout) -> Vec<Unit<'_>> {
    let few = layout
        .parts()
        .filter(|(segment, _)| segment.rows.len() < MIN_BLOCK);
    few.flat_map(|(segment, keys)| {
        segment.rows.clone().flat_map(move |row| {
            blocks(layout.visible(segment, row)).map(move |block| Unit {
                row,
                place: block.start % KEY_BLOCK,
                keys: &keys[block],
            })
        })
    })
    .collect()
}

/// The rest, head by head, so that one head's keys stay in the cache for all rows.
fn lane_tasks(heads: Heads, layout: &AttentionLayout) -> impl Iterator<Item = LaneTask<'_>> {
    let rows = (SHARING / heads.group()).next_multiple_of(LANES);
    let many = layout
        .parts()
        .filter(|(segment, _)| segment.rows.len() >= MIN_BLOCK);
    many.flat_map(move |(segment, keys)| {
        (0..heads.n_kv_heads).flat_map(move |kv_head| {
            segment
                .rows
                .clone()
                .step_by(rows)
                .map(move |first| LaneTask {
                    layout,
                    segment,
                    keys,
                    rows: first..(first + rows).min(segment.rows.end),
                    kv_head,
                })
        })
    })
}

/// The parts of `positions` in each block of keys.
fn blocks(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    (positions.start / KEY_BLOCK..positions.end.div_ceil(KEY_BLOCK)).map(move |block| {
        (block * KEY_BLOCK).max(positions.start)..((block + 1) * KEY_BLOCK).min(positions.end)
    })
}

/// Some rows of a segment and the query heads that share one key-value head.
struct LaneTask<'a> {
    layout: &'a AttentionLayout,
    segment: &'a Segment,
    keys: &'a [u32],
    rows: Range<usize>,
    kv_head: usize,
}

/// What a task needs again and again.
#[derive(Default)]
struct Scratch {
    /// A block's keys and values of one head, side by side.
    keys: Vec<f32>,
    values: Vec<f32>,
    lanes: Vec<LaneRows>,
    /// Of [`Unit`]s.
    scores: Vec<[f32; KEY_BLOCK]>,
}

impl LaneTask<'_> {
    #[inline(always)]
    fn compute<S: VectorMath, E: Element>(
        &self,
        isa: S,
        Input { q, k, v, heads }: Input<E>,
        scratch: &mut Scratch,
        out: &SharedOutput,
    ) {
        let (dim, width) = (heads.head_dim, heads.width());
        let starts = self.rows.clone().step_by(LANES);
        let blocks_of_rows = starts.map(|first| first..(first + LANES).min(self.rows.end));
        let shares = heads.sharing(self.kv_head);
        let of_heads: Vec<(usize, Range<usize>)> = shares
            .flat_map(|head| blocks_of_rows.clone().map(move |rows| (head, rows)))
            .collect();
        if scratch.lanes.len() < of_heads.len() {
            scratch.lanes.resize_with(of_heads.len(), LaneRows::default);
        }
        let lanes = &mut scratch.lanes[..of_heads.len()];
        for (state, (head, rows)) in lanes.iter_mut().zip(&of_heads) {
            state.see(rows, |row| self.layout.visible(self.segment, row));
            let mut rows = rows.clone();
            let queries = std::array::from_fn(|_| match rows.next() {
                Some(row) => &q[row * width + head * dim..][..dim],
                None => &[],
            });
            state.start(isa, queries, heads);
        }
        let first = lanes.iter().map(|rows| rows.positions().start).min();
        let end = lanes.iter().map(|rows| rows.positions().end).max();
        let positions = first.unwrap_or(0)..end.unwrap_or(0);
        let columns = self.kv_head * dim..(self.kv_head + 1) * dim;
        for block in blocks(positions) {
            let keys = &self.keys[block.clone()];
            let place = (heads.kv_width(), &columns);
            copy_rows(isa, (k, place), keys, &mut scratch.keys);
            copy_rows(isa, (v, place), keys, &mut scratch.values);
            for rows in lanes.iter_mut() {
                rows.absorb(isa, &block, &scratch.keys, &scratch.values);
            }
        }
        for (state, (head, rows)) in lanes.iter().zip(&of_heads) {
            let mut rows = rows.clone();
            let mut out = std::array::from_fn(|_| match rows.next() {
                Some(row) => out.get(row * width + head * dim, dim),
                None => &mut [],
            });
            state.finish(isa, &mut out);
        }
    }
}

/// Copies some columns of the rows `keys` of `matrix`, side by side, and widens them.
#[inline(always)]
pub(super) fn copy_rows<S: VectorMath, E: Element>(
    isa: S,
    (matrix, (stride, columns)): (&[E], (usize, &Range<usize>)),
    keys: &[u32],
    into: &mut Vec<f32>,
) {
    into.resize(keys.len() * columns.len(), 0.0);
    for (key, into) in keys.iter().zip(into.chunks_exact_mut(columns.len())) {
        let row = &matrix[*key as usize * stride..][columns.clone()];
        let (from, rest) = row.as_chunks();
        let (chunks, into_rest) = into.as_chunks_mut();
        for (from, into) in from.iter().zip(chunks) {
            isa.store(E::load(isa, from), into);
        }
        for (from, into) in rest.iter().zip(into_rest) {
            *into = from.widen();
        }
    }
}

/// The result's memory, which all tasks write: each its own rows and columns.
struct SharedOutput(*mut f32);

#[expect(
    unsafe_code,
    reason = "tasks write disjoint columns of one matrix, which no slice can express"
)]
impl SharedOutput {
    /// The `len` elements from `first`.
    #[expect(clippy::mut_from_ref, reason = "callers ask for disjoint places")]
    fn get(&self, first: usize, len: usize) -> &mut [f32] {
        // SAFETY: one head of one row, which exactly one task asks for; the vector outlives the tasks.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), len) }
    }
}

#[expect(unsafe_code, reason = "see above")]
// SAFETY: tasks differ in their rows or their heads, so the places that they ask for are disjoint.
unsafe impl Sync for SharedOutput {}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::super::attention::Mask;
    use super::super::entry::on_every_set;
    use super::*;

    const N_KEYS: usize = 150;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 * 0.61;
        (0..n).map(|i| 2.0 * value(i).sin()).collect()
    }

    /// The keys of a sequence whose cache rows lie in three pieces, up to `end`.
    fn keys(end: usize) -> Vec<Range<usize>> {
        let pieces = [(0..50, 120), (50..77, 30), (77..N_KEYS, 170)];
        let up_to_end = |(positions, place): (Range<usize>, usize)| {
            place..place + positions.end.min(end).saturating_sub(positions.start)
        };
        pieces.into_iter().map(up_to_end).collect()
    }

    /// The last `n` rows of a sequence of `end` positions, which are the same with every instruction set.
    fn rows<E: Element>(whole: Input<E>, mask: Mask, (end, n): (usize, usize)) -> Vec<f32> {
        let width = whole.heads.width();
        let segment = Segment {
            rows: 0..n,
            keys: keys(end),
        };
        let layout = AttentionLayout::new(vec![segment], mask).unwrap();
        let q = &whole.q[(end - n) * width..end * width];
        let input = Input { q, ..whole };
        let layout = &layout;
        let of_sets = on_every_set(Forward { input, layout });
        assert!(of_sets.iter().all(|of_set| *of_set == of_sets[0]));
        forward(input, layout)
    }

    fn exact(
        Input { q, k, v, heads }: Input<f32>,
        visible: Range<usize>,
        (row, head, d): (usize, usize, usize),
    ) -> f64 {
        let of_head = head / heads.group() * heads.head_dim;
        let rows: Vec<usize> = keys(N_KEYS).into_iter().flatten().collect();
        let (mut sum, mut total) = (0.0, 0.0);
        for row_of_key in &rows[visible] {
            let first = row_of_key * heads.kv_width() + of_head;
            let query = &q[row * heads.width() + head * heads.head_dim..][..heads.head_dim];
            let products = query.iter().zip(&k[first..]);
            let score: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            let p = (score * f64::from(heads.scale)).exp();
            total += p;
            sum += p * f64::from(v[first + d]);
        }
        sum / total
    }

    #[test]
    fn any_chunking_gives_the_same_bits_and_they_are_close_to_double_precision() {
        for (n_heads, n_kv_heads, dim) in [(2, 1, 20), (4, 4, 16), (8, 2, 64)] {
            let heads = Heads::new(n_heads, n_kv_heads, dim);
            let q = values(N_KEYS * heads.width(), 1);
            let [k, v] = [2, 3].map(|seed| values(250 * heads.kv_width(), seed));
            let input = Input {
                q: &q,
                k: &k,
                v: &v,
                heads,
            };
            for window in [None, Some(70), Some(3)] {
                let mask = Mask::Causal { window };
                let whole = rows(input, mask, (N_KEYS, N_KEYS));
                for chunk in [1, 3, 4, 17, 64, 70] {
                    for first in (0..N_KEYS).step_by(chunk) {
                        let end = (first + chunk).min(N_KEYS);
                        let part = rows(input, mask, (end, end - first));
                        let want = &whole[first * heads.width()..end * heads.width()];
                        assert_eq!(part, want, "rows {first} to {end}, {mask:?}, {heads:?}");
                    }
                }
                for (i, got) in whole.iter().enumerate().step_by(97) {
                    let (row, column) = (i / heads.width(), i % heads.width());
                    let first = (row + 1).saturating_sub(window.unwrap_or(N_KEYS));
                    let place = (row, column / dim, column % dim);
                    let want = exact(input, first..row + 1, place);
                    assert!((f64::from(*got) - want).abs() < 2e-6, "{got} for {want}");
                }
            }
        }
    }
    #[test]
    fn keys_in_bf16_give_the_bits_of_the_same_keys_in_f32() {
        for (n_heads, n_kv_heads, dim) in [(2, 1, 20), (8, 2, 64)] {
            let heads = Heads::new(n_heads, n_kv_heads, dim);
            let q = values(N_KEYS * heads.width(), 1);
            let narrow = [2, 3].map(|seed| {
                let values = values(250 * heads.kv_width(), seed);
                values.into_iter().map(bf16::nearest).collect::<Vec<_>>()
            });
            let wide = narrow
                .each_ref()
                .map(|row| row.iter().map(|x| x.widen()).collect::<Vec<f32>>());
            let q = &*q;
            let (k, v) = (&*narrow[0], &*narrow[1]);
            let narrow = Input { q, k, v, heads };
            let (k, v) = (&*wide[0], &*wide[1]);
            let wide = Input { q, k, v, heads };
            let mask = Mask::Causal { window: Some(70) };
            for n in [1, 3, 17, N_KEYS] {
                let of = (N_KEYS, n);
                assert_eq!(rows(narrow, mask, of), rows(wide, mask, of), "{n} rows");
            }
        }
    }
}
