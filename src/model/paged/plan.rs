//! What a step asks of the paged kernels: sorted on the host, then moved to the device once for all layers.
//!
//! A row's group and kernel follow from its own sequence: rows with up to [`PARTITION`] keys are never mixed with
//! others, and rows with more come in calls small enough that `paged_attention` always splits their keys. (It
//! would choose by the size of the call, and round differently.)

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::table::{PAGE_ROWS, Pick, Rows, pages_of, pick};
use crate::model::key_values::StepOfHeads;
use crate::model::ops::attention::{AttentionLayout, Mask, Segment};

/// Keys that the kernel takes in one piece, `partition_size` of `mistralrs-paged-attn`.
const PARTITION: usize = 512;
/// Sequences times heads above which it does not split keys.
const MAX_SPLIT: usize = 512;

/// A step on the device.
#[derive(Debug)]
pub struct Plan {
    /// Where each new row goes, `[rows]`, i64.
    pub slots: Tensor,
    /// Rows that read their keys where they lie.
    pub singles: Vec<Singles>,
    /// Segments whose keys are gathered.
    pub runs: Vec<Run>,
    /// Where each row's result stands when those of `singles` and `runs` follow each other, `[rows]`; `None`
    /// where in row order.
    pub places: Option<Tensor>,
}

/// Rows that are alone in their segments, for one call.
#[derive(Debug)]
pub struct Singles {
    /// Which rows, `[n]`.
    pub rows: Tensor,
    /// The pages of each, padded with zeros, `[n, pages of the longest]`.
    pub tables: Tensor,
    /// The keys of each, `[n]`.
    pub lens: Tensor,
    /// The most keys of one.
    pub longest: usize,
}

/// The pages of some sequences and how many keys they have there, by call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    rows: Vec<u32>,
    pages: Vec<Vec<u32>>,
    lens: Vec<u32>,
}

impl Table {
    /// The most keys of a sequence.
    fn longest(&self) -> usize {
        self.lens.iter().copied().max().unwrap_or(0) as usize
    }

    /// Every sequence's pages, padded with zeros to the longest, and how many these are.
    fn padded(&self) -> (Vec<u32>, usize) {
        let width = self.pages.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |pages: &Vec<u32>| {
            let mut pages = pages.clone();
            pages.resize(width, 0);
            pages
        };
        (self.pages.iter().flat_map(padded).collect(), width)
    }

    fn on(self, device: &Device) -> Result<Singles> {
        let (pages, width) = self.padded();
        Ok(Singles {
            rows: Tensor::new(self.rows.as_slice(), device)?,
            tables: Tensor::from_vec(pages, (self.lens.len(), width), device)?,
            lens: Tensor::new(self.lens.as_slice(), device)?,
            longest: self.longest(),
        })
    }
}

/// A segment whose keys are gathered.
#[derive(Debug)]
pub struct Run {
    /// Its rows in the step.
    pub rows: Range<usize>,
    /// How to gather the keys from the first on that any of them sees.
    pub keys: Gather,
    /// `[0, rows]` and `[0, keys]`, for kernels that take several runs.
    pub ends: [Tensor; 2],
    /// The sliding window.
    pub window: Option<usize>,
}

/// Pages to read and which of their rows to take.
#[derive(Debug)]
pub struct Gather {
    /// `[pages]`.
    pub pages: Tensor,
    /// Which rows.
    pub rows: GatheredRows,
}

/// Which rows of the pages read.
#[derive(Debug)]
pub enum GatheredRows {
    /// From this one on so many.
    From(usize, usize),
    /// These, `[keys]`.
    Each(Tensor),
}

impl Gather {
    fn new(pick: Pick, device: &Device) -> Result<Self> {
        Ok(Self {
            pages: Tensor::new(pick.pages.as_slice(), device)?,
            rows: match pick.rows {
                Rows::From(first, n) => GatheredRows::From(first, n),
                Rows::Each(each) => GatheredRows::Each(Tensor::new(each.as_slice(), device)?),
            },
        })
    }

    /// The first `n` rows of pages that a table names.
    pub fn first(pages: &[u32], n: usize, device: &Device) -> Result<Self> {
        let pages = pages[..n.div_ceil(PAGE_ROWS)].to_vec();
        let rows = Rows::From(0, n);
        Self::new(Pick { pages, rows }, device)
    }
}

impl Plan {
    /// Sorts a step whose new rows go to the cache rows `into`.
    pub fn new(of: StepOfHeads, into: &[u32], device: &Device) -> Result<Self> {
        let (tables, runs) = sort(of.layout, of.heads.n_heads);
        let order = tables.iter().flat_map(|table| table.rows.clone());
        let order: Vec<u32> = order
            .chain(
                runs.iter()
                    .flat_map(|run| run.rows.clone())
                    .map(|row| row as u32),
            )
            .collect();
        let slots: Vec<i64> = into.iter().map(|row| i64::from(*row)).collect();
        let places = places(&order).map(|places| Tensor::new(places.as_slice(), device));
        Ok(Self {
            slots: Tensor::new(slots.as_slice(), device)?,
            singles: tables
                .into_iter()
                .map(|table| table.on(device))
                .collect::<Result<_>>()?,
            runs: runs
                .into_iter()
                .map(|segment| run(of.layout, segment, device))
                .collect::<Result<_>>()?,
            places: places.transpose()?,
        })
    }
}

fn run(layout: &AttentionLayout, segment: &Segment, device: &Device) -> Result<Run> {
    let keys = rows_of(segment);
    let from = layout.visible(segment, segment.rows.start).start;
    let (n_rows, n_keys) = (segment.rows.len(), keys.len() - from);
    Ok(Run {
        rows: segment.rows.clone(),
        keys: Gather::new(pick(&keys, from), device)?,
        ends: [
            Tensor::new(&[0, n_rows as u32], device)?,
            Tensor::new(&[0, n_keys as u32], device)?,
        ],
        window: window(layout),
    })
}

fn rows_of(segment: &Segment) -> Vec<u32> {
    let rows = segment.keys.iter().cloned().flatten();
    rows.map(|row| row as u32).collect()
}

fn window(layout: &AttentionLayout) -> Option<usize> {
    match layout.mask() {
        Mask::Causal { window } => window,
        Mask::Bidirectional => None,
    }
}

/// The calls for rows that are alone and see all their keys in whole pages, and all other segments.
fn sort(layout: &AttentionLayout, n_heads: usize) -> (Vec<Table>, Vec<&Segment>) {
    let at_once = (MAX_SPLIT / n_heads.max(1)).max(1);
    let (mut short, mut long) = (Table::default(), vec![Table::default()]);
    let mut runs = Vec::new();
    for segment in layout.segments() {
        let n_keys = segment.n_keys();
        let sees_all = layout.visible(segment, segment.rows.start) == (0..n_keys);
        let alone = segment.rows.len() == 1 && sees_all;
        let Some(pages) = alone.then(|| pages_of(&rows_of(segment))).flatten() else {
            runs.push(segment);
            continue;
        };
        if n_keys > PARTITION && long.last().is_some_and(|table| table.lens.len() == at_once) {
            long.push(Table::default());
        }
        let table = match long.last_mut() {
            Some(table) if n_keys > PARTITION => table,
            _ => &mut short,
        };
        table.rows.push(segment.rows.start as u32);
        table.pages.push(pages);
        table.lens.push(n_keys as u32);
    }
    let tables = std::iter::once(short).chain(long);
    let tables = tables.filter(|table| !table.lens.is_empty()).collect();
    (tables, runs)
}

/// The inverse of an order of rows; `None` where that changes nothing.
fn places(order: &[u32]) -> Option<Vec<u32>> {
    if order.iter().copied().eq(0..order.len() as u32) {
        return None;
    }
    let mut places = vec![0; order.len()];
    for (place, row) in (0..).zip(order) {
        places[*row as usize] = place;
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(rows: Range<usize>, keys: &[Range<usize>]) -> Segment {
        let keys = keys.to_vec();
        Segment { rows, keys }
    }

    fn layout(segments: Vec<Segment>, window: Option<usize>) -> AttentionLayout {
        AttentionLayout::new(segments, Mask::Causal { window }).unwrap()
    }

    #[test]
    fn lone_rows_in_whole_pages_are_read_in_place_and_all_others_gathered() {
        let layout = layout(
            vec![
                segment(0..3, &[0..16, 32..40]),
                segment(3..4, &[48..64, 16..20]),
                // In no whole pages.
                segment(4..5, &[65..70]),
                segment(5..6, &[80..81]),
            ],
            None,
        );
        let (tables, runs) = sort(&layout, 4);
        let want = Table {
            rows: vec![3, 5],
            pages: vec![vec![3, 1], vec![5]],
            lens: vec![20, 1],
        };
        assert_eq!(want.padded(), (vec![3, 1, 5, 0], 2));
        assert_eq!((want.longest(), tables), (20, vec![want]));
        let rows: Vec<_> = runs.iter().map(|run| run.rows.clone()).collect();
        assert_eq!(rows, [0..3, 4..5]);
    }

    #[test]
    fn a_window_that_hides_keys_needs_a_gathering_of_those_in_sight() {
        let device = &Device::Cpu;
        let layout = layout(
            vec![segment(0..1, &[0..20]), segment(1..2, &[32..36])],
            Some(8),
        );
        let (tables, runs) = sort(&layout, 4);
        assert_eq!(tables[0].rows, [1]);
        let run = run(&layout, runs[0], device).unwrap();
        // Keys 12 to 19: of the first page the last four rows, of the second the first four.
        assert_eq!(run.keys.pages.to_vec1::<u32>().unwrap(), [0, 1]);
        assert!(matches!(run.keys.rows, GatheredRows::From(12, 8)));
        assert_eq!(run.ends[1].to_vec1::<u32>().unwrap(), [0, 8]);
        assert_eq!(run.window, Some(8));
    }

    #[test]
    fn a_row_is_in_a_call_that_treats_it_as_if_it_were_alone() {
        let keys = [600, 512, 513, 4, 700, 900];
        let segments = (0..)
            .zip(keys)
            .scan(0, |next, (row, n_keys): (usize, usize)| {
                let first = *next;
                *next += n_keys.next_multiple_of(PAGE_ROWS);
                Some(segment(row..row + 1, &[first..first + n_keys]))
            });
        let layout = layout(segments.collect(), None);
        let (tables, runs) = sort(&layout, 256);
        assert!(runs.is_empty());
        let rows: Vec<_> = tables.iter().map(|table| table.rows.clone()).collect();
        // Those whose keys are not split together; the others in calls of 512 heads at most.
        assert_eq!(rows, [vec![1, 3], vec![0, 2], vec![4, 5]]);
        let one_by_one = sort(&layout, 1000).0.len();
        assert_eq!(one_by_one, 5);
    }

    #[test]
    fn results_return_to_the_order_of_rows() {
        assert_eq!(places(&[0, 1, 2]), None);
        assert_eq!(places(&[3, 0, 1, 2]), Some(vec![1, 2, 3, 0]));
    }
}
