//! Where keys and values lie in pages: arithmetic only.
//!
//! Layout: `mistralrs-paged-attn` 0.8.1, `src/cuda/reshape_and_cache_kernel.cu`. Keys are
//! `[pages, kv_heads, head_dim / lanes, rows of a page, lanes]` with as many lanes as fill sixteen bytes,
//! values `[pages, kv_heads, head_dim, rows of a page]`.

use candle_core::{DType, Result, bail};

/// Rows of a page. The kernels have 8, 16 and 32; the engine's blocks have 16, so that a block is a page.
pub const PAGE_ROWS: usize = 16;

/// Widths of a head that both kernels have.
const HEAD_DIMS: [usize; 7] = [64, 80, 96, 112, 128, 192, 256];

/// The least width of a head that the kernels have and that holds one of `head_dim`.
pub fn stored_head_dim(head_dim: usize) -> Option<usize> {
    HEAD_DIMS.into_iter().find(|one| *one >= head_dim)
}

/// The sizes of one layer's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    pub n_pages: usize,
    pub n_kv_heads: usize,
    /// As stored, see [`stored_head_dim`].
    pub head_dim: usize,
    /// Neighbouring columns of a key.
    pub lanes: usize,
}

impl PageShape {
    /// For heads of `head_dim` values of type `dtype`.
    pub fn new(n_pages: usize, n_kv_heads: usize, head_dim: usize, dtype: DType) -> Result<Self> {
        let Some(stored) = stored_head_dim(head_dim) else {
            bail!("heads of {head_dim} are wider than the 256 that pages can have");
        };
        Ok(Self {
            n_pages,
            n_kv_heads,
            head_dim: stored,
            lanes: 16 / dtype.size_in_bytes(),
        })
    }

    /// The shape of the keys.
    pub fn keys(&self) -> [usize; 5] {
        let columns = self.head_dim / self.lanes;
        [
            self.n_pages,
            self.n_kv_heads,
            columns,
            PAGE_ROWS,
            self.lanes,
        ]
    }

    /// The shape of the values.
    pub fn values(&self) -> [usize; 4] {
        [self.n_pages, self.n_kv_heads, self.head_dim, PAGE_ROWS]
    }

    /// Where the keys hold a column of a head of a row.
    pub fn key_at(&self, row: usize, head: usize, column: usize) -> usize {
        let (page, place) = (row / PAGE_ROWS, row % PAGE_ROWS);
        let columns = self.head_dim / self.lanes;
        let before = (page * self.n_kv_heads + head) * columns + column / self.lanes;
        (before * PAGE_ROWS + place) * self.lanes + column % self.lanes
    }

    /// Where the values hold a column of a head of a row.
    pub fn value_at(&self, row: usize, head: usize, column: usize) -> usize {
        let (page, place) = (row / PAGE_ROWS, row % PAGE_ROWS);
        let before = (page * self.n_kv_heads + head) * self.head_dim + column;
        before * PAGE_ROWS + place
    }
}

/// The pages of a sequence whose rows, by position, fill one page after the other, the last as far as there
/// are rows; `None` where they do not.
pub fn pages_of(rows: &[u32]) -> Option<Vec<u32>> {
    let page = |rows: &[u32]| {
        let first = rows[0];
        let fills = first.is_multiple_of(PAGE_ROWS as u32)
            && rows.iter().zip(first..).all(|(row, want)| *row == want);
        fills.then_some(first / PAGE_ROWS as u32)
    };
    rows.chunks(PAGE_ROWS).map(page).collect()
}

/// Which pages to read, and which of their rows, to have some rows in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub pages: Vec<u32>,
    pub rows: Rows,
}

/// Which rows of the pages read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All from this one on, and how many.
    From(usize, usize),
    /// These.
    Each(Vec<u32>),
}

/// How to read the rows of positions `from` and above of a sequence whose rows are given by position.
pub fn pick(rows: &[u32], from: usize) -> Pick {
    if let Some(mut pages) = pages_of(rows) {
        pages.drain(..from / PAGE_ROWS);
        let rows = Rows::From(from % PAGE_ROWS, rows.len() - from);
        return Pick { pages, rows };
    }
    let size = PAGE_ROWS as u32;
    let mut pages: Vec<u32> = Vec::new();
    let mut each = Vec::with_capacity(rows.len() - from);
    for row in &rows[from..] {
        let page = row / size;
        // Most often it is the page of the row before.
        let index = pages.iter().rposition(|one| *one == page);
        let index = index.unwrap_or_else(|| {
            pages.push(page);
            pages.len() - 1
        });
        each.push(index as u32 * size + row % size);
    }
    let rows = Rows::Each(each);
    Pick { pages, rows }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_value_has_a_place_of_its_own() {
        for (dtype, lanes) in [(DType::F32, 4), (DType::BF16, 8)] {
            let shape = PageShape::new(3, 2, 60, dtype).unwrap();
            assert_eq!((shape.head_dim, shape.lanes), (64, lanes));
            let size: usize = shape.keys().iter().product();
            assert_eq!(size, shape.values().iter().product::<usize>());
            let (mut keys, mut values) = (HashSet::new(), HashSet::new());
            for row in 0..3 * PAGE_ROWS {
                for head in 0..2 {
                    for column in 0..64 {
                        keys.insert(shape.key_at(row, head, column));
                        values.insert(shape.value_at(row, head, column));
                    }
                }
            }
            assert_eq!((keys.len(), values.len()), (size, size));
            assert!(keys.into_iter().chain(values).all(|at| at < size));
        }
        assert!(PageShape::new(1, 1, 257, DType::F32).is_err());
    }

    #[test]
    fn a_table_has_whole_pages_in_any_order() {
        let rows: Vec<u32> = (48..64).chain(0..16).chain(32..37).collect();
        assert_eq!(pages_of(&rows), Some(vec![3, 0, 2]));
        assert_eq!(pages_of(&[]), Some(vec![]));
        assert_eq!(pages_of(&[16]), Some(vec![1]));
        // Not from a page's beginning, with a gap, backwards.
        assert_eq!(pages_of(&[17]), None);
        assert_eq!(pages_of(&[16, 18]), None);
        assert_eq!(pages_of(&[16, 15]), None);
        let short: Vec<u32> = (0..10).chain(16..32).collect();
        assert_eq!(pages_of(&short), None);
    }

    #[test]
    fn picked_rows_are_those_asked_for() {
        let whole: Vec<u32> = (48..64).chain(0..16).chain(32..37).collect();
        let odd: Vec<u32> = (5..30).rev().chain([90, 3, 91]).collect();
        for rows in [whole, odd] {
            for from in [0, 1, 15, 16, 17, 26] {
                let pick = pick(&rows, from);
                let read: Vec<u32> = pick
                    .pages
                    .iter()
                    .flat_map(|page| page * 16..page * 16 + 16)
                    .collect();
                let got: Vec<u32> = match &pick.rows {
                    Rows::From(first, n) => read[*first..first + n].to_vec(),
                    Rows::Each(each) => each.iter().map(|index| read[*index as usize]).collect(),
                };
                assert_eq!(got, rows[from..], "from {from}");
            }
        }
    }
}
