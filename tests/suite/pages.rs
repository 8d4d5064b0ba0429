//! Pages on the device of `NORMA_TEST_DEVICE` against rows on the CPU: whatever the mix of segments, both caches give
//! the same attention.

use std::ops::Range;

use candle_core::{Device, Tensor};
use norma::model::ModelShape;
use norma::model::key_values::{self, StepOfHeads};
use norma::model::kv_cache::{KvCache, KvType};
use norma::model::ops::Kernels;
use norma::model::ops::attention::{AttentionLayout, Heads, Mask, Segment};
use norma::model::paged::PagedCache;
use norma::model::step::Step;

use crate::device::{report, test_device};
use crate::golden::max_difference;

const LAYERS: usize = 2;
const ROWS: usize = 2000;

fn shape(n_kv_heads: usize, head_dim: usize) -> ModelShape {
    ModelShape {
        vocab_size: 3,
        max_positions: ROWS,
        image_size: 1,
        image_tokens: 1,
        tower_rows: 1,
        tower_layers: 1,
        n_layers: LAYERS,
        kv_width: n_kv_heads * head_dim,
        head_dim,
    }
}

/// Fixed numbers that look random.
fn values(rows: usize, width: usize, seed: usize) -> Tensor {
    let value = |i: usize| (((i * 7919 + seed * 104_729) % 2003) as f32 * 0.61).sin();
    let values: Vec<f32> = (0..rows * width).map(value).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

fn segment(rows: Range<usize>, keys: &[Range<usize>]) -> Segment {
    let keys = keys.to_vec();
    Segment { rows, keys }
}

/// Steps of five sequences: one prefilled in two chunks and then answering, one in pages out of order, one in
/// rows that fill no pages, one of a single row, and one of more keys than a kernel takes in one piece.
fn steps() -> Vec<Vec<Segment>> {
    let (a, b) = (48..64, 16..32);
    vec![
        vec![
            segment(0..10, &[0..10]),
            segment(10..30, &[a.clone(), 16..20]),
            segment(30..37, &[70..77]),
            segment(37..737, &[1200..1900]),
        ],
        vec![
            segment(0..1, &[96..97]),
            segment(1..6, &[0..15]),
            segment(6..7, &[a.clone(), 16..21]),
            segment(7..8, &[70..78]),
            segment(8..9, &[1200..1901]),
        ],
        vec![
            segment(0..1, &[1200..1902]),
            segment(1..2, &[70..79]),
            segment(2..3, &[a.clone(), 16..22]),
            segment(3..4, &[0..16]),
            segment(4..15, &[a, b, 144..145]),
        ],
    ]
}

fn step_of(segments: &[Segment]) -> Step {
    // A segment's own rows are the last that it sees.
    let new = |segment: &Segment| {
        let keys: Vec<u32> = segment
            .keys
            .iter()
            .cloned()
            .flatten()
            .map(|row| row as u32)
            .collect();
        keys[keys.len() - segment.rows.len()..].to_vec()
    };
    Step {
        cache_rows: Some(segments.iter().flat_map(new).collect()),
        segments: segments.to_vec(),
        ..Step::default()
    }
}

/// The largest difference between the two caches' results.
fn difference(heads: Heads, window: Option<usize>, kv_type: KvType) -> f32 {
    let (shape, device) = (shape(heads.n_kv_heads, heads.head_dim), test_device());
    let rows = KvCache::new(&shape, ROWS, KvType::F32).unwrap();
    let pages = PagedCache::new(&shape, ROWS, kv_type, device).unwrap();
    let mut largest = 0f32;
    for (seed, segments) in steps().iter().enumerate() {
        let step = step_of(segments);
        let layout = AttentionLayout::new(segments.clone(), Mask::Causal { window }).unwrap();
        let n = step.cache_rows.as_ref().unwrap().len();
        let of = StepOfHeads {
            step: &step,
            layout: &layout,
            heads,
            kernels: Kernels::Fused,
        };
        let rows = key_values::begin(of, Some(&rows)).unwrap();
        let pages = key_values::begin(of, Some(&pages)).unwrap();
        for layer in 0..LAYERS {
            let seed = 10 * seed + layer;
            let q = values(n, heads.n_heads * heads.head_dim, seed);
            let k = values(n, shape.kv_width, seed + 100);
            let v = values(n, shape.kv_width, seed + 200);
            let want = rows.attend(layer, [&q, &k, &v]).unwrap();
            let [q, k, v] = [q, k, v].map(|x| x.to_device(device).unwrap());
            let got = pages.attend(layer, [&q, &k, &v]).unwrap();
            let got = got.to_device(&Device::Cpu).unwrap();
            largest = largest.max(max_difference(&got, &want));
        }
    }
    largest
}

#[test]
fn pages_give_what_rows_give() {
    // Exponentials of a device's fast kind.
    let exact = if test_device().is_cpu() { 1e-5 } else { 1e-4 };
    // In bf16 values up to 1 are rounded to 8 bits, as are queries, keys and the result.
    for (kv_type, bounds) in [(KvType::F32, 0.0..exact), (KvType::Bf16, 1e-5..3e-2)] {
        let mut largest = 0f32;
        for heads in [
            Heads::new(4, 4, 8),
            Heads::new(6, 2, 16),
            Heads::new(2, 1, 64),
        ] {
            for window in [None, Some(8), Some(17), Some(1000)] {
                let error = difference(heads, window, kv_type);
                assert!(
                    bounds.contains(&error),
                    "{heads:?}, {window:?}, {kv_type}: {error}"
                );
                largest = largest.max(error);
            }
        }
        report(&format!("pages in {kv_type}, at most"), &largest);
    }
}

#[test]
fn what_pages_cannot_hold_is_refused() {
    let device = test_device();
    assert!(PagedCache::new(&shape(1, 300), 16, KvType::F32, device).is_err());
    let pages = PagedCache::new(&shape(1, 8), 16, KvType::F32, device).unwrap();
    let begin = |heads: Heads, last: usize| {
        let segments = vec![Segment {
            rows: 0..1,
            keys: vec![last..last + 1],
        }];
        let step = step_of(&segments);
        let mask = Mask::Causal { window: None };
        let layout = AttentionLayout::new(segments, mask).unwrap();
        let of = StepOfHeads {
            step: &step,
            layout: &layout,
            heads,
            kernels: Kernels::Fused,
        };
        key_values::begin(of, Some(&pages)).map(|_| ())
    };
    assert!(begin(Heads::new(2, 1, 8), 15).is_ok());
    assert!(begin(Heads::new(2, 1, 8), 16).is_err());
    assert!(begin(Heads::new(2, 2, 8), 15).is_err());
}
