//! Each operation: fused against composed, and its backward against finite differences.
//!
//! Finite differences are taken in f32 with a step that balances rounding and curvature; the tolerance
//! (2 % of the gradient's scale) is far above their noise and far below any wrong formula.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use norma::model::bank::{SiteRows, SiteValues};
use norma::model::ops::activation::{Activation, activate, gated};
use norma::model::ops::attention::{AttentionLayout, Heads, Mask, Segment, attention};
use norma::model::ops::cross_entropy::cross_entropy;
use norma::model::ops::frozen_linear::{DenseLinear, FrozenLinear, QuantisedLinear};
use norma::model::ops::norm::{Statistic, norm, norm_of_rows};
use norma::model::ops::rope::{RopeTable, rope};
use norma::model::ops::{Kernels, RowIndex};

use crate::golden::max_difference;

/// Fixed numbers that look random.
fn values(shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n)
        .map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 * 0.61).sin())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Checks `f` on its inputs: fused equals composed, in value and in every gradient, and the fused
/// gradient equals finite differences along fixed directions.
fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor], Kernels) -> Result<Tensor>) {
    let variables: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let tracked: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let fused = f(&tracked, Kernels::Fused).unwrap();
    let composed = f(&tracked, Kernels::Composed).unwrap();
    let error = max_difference(&fused, &composed);
    assert!(error < 2e-5, "{name}: fused and composed differ by {error}");
    // A weighted sum, so that every output element has its own gradient.
    let weights = values(fused.dims(), 99);
    let scalar = |y: &Tensor| y.mul(&weights).unwrap().sum_all().unwrap();
    let fused_gradients = scalar(&fused).backward().unwrap();
    let composed_gradients = scalar(&composed).backward().unwrap();
    for (i, variable) in variables.iter().enumerate() {
        let fused = fused_gradients.get(variable).unwrap();
        let error = max_difference(fused, composed_gradients.get(variable).unwrap());
        assert!(
            error < 1e-4,
            "{name}: gradient {i} differs from the composed one by {error}"
        );
        let direction = values(variable.dims(), 7 + i);
        let step = 1e-2;
        let at = |sign: f64| {
            let mut moved = inputs.to_vec();
            moved[i] = (&inputs[i] + (&direction * (sign * step)).unwrap()).unwrap();
            let y = f(&moved, Kernels::Fused).unwrap();
            f64::from(scalar(&y).to_scalar::<f32>().unwrap())
        };
        let numeric = (at(1.0) - at(-1.0)) / (2.0 * step);
        let exact = fused
            .mul(&direction)
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        let scale = fused
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            .sqrt();
        let error = (numeric - f64::from(exact)).abs();
        assert!(
            error < 0.02 * f64::from(scale) + 1e-3,
            "{name}: gradient {i}: {numeric} {exact}"
        );
    }
}

fn slots(slots: &[u32]) -> RowIndex {
    RowIndex::new(slots, &Device::Cpu).unwrap()
}

#[test]
fn norms_and_their_gradients_are_right_for_every_slot() {
    // Widths around the vector length, and more slots than rows use.
    for width in [1, 3, 16, 33, 80] {
        let (x, gain, bias) = (
            values(&[5, width], 1),
            values(&[3, width], 2),
            values(&[3, width], 3),
        );
        let rows = slots(&[2, 0, 2, 0, 2]);
        check(
            "layer norm",
            &[x.clone(), gain.clone(), bias],
            |t, kernels| {
                let bias = Some(t[2].clone());
                let values = SiteValues {
                    gain: t[1].clone(),
                    bias,
                    trainable: true,
                };
                norm(&t[0], &values, &rows, (Statistic::Centred, 1e-2), kernels)
            },
        );
        check("rms norm", &[x, gain], |t, kernels| {
            let values = SiteValues {
                gain: t[1].clone(),
                bias: None,
                trainable: true,
            };
            norm(&t[0], &values, &rows, (Statistic::Uncentred, 1e-2), kernels)
        });
    }
}

#[test]
fn a_norm_of_rows_that_lie_anywhere_is_that_of_a_matrix() {
    let x = values(&[4, 16], 6);
    let matrix = values(&[3, 40], 5);
    let rows = matrix.to_vec2::<f32>().unwrap();
    let site = SiteRows {
        rows: Arc::new(rows.into_iter().map(Into::into).collect()),
        gain: 3..19,
        bias: Some(20..36),
    };
    let as_matrix = SiteValues {
        gain: matrix.narrow(1, 3, 16).unwrap(),
        bias: Some(matrix.narrow(1, 20, 16).unwrap()),
        trainable: false,
    };
    let slots = slots(&[2, 0, 2, 1]);
    let kind = (Statistic::Centred, 1e-5);
    let x = candle_core::Var::from_tensor(&x).unwrap();
    for kernels in [Kernels::Fused, Kernels::Composed] {
        let got = norm_of_rows(&x, site.clone(), &slots, kind, kernels).unwrap();
        let want = norm(&x, &as_matrix, &slots, kind, kernels).unwrap();
        let gradient = |y: &Tensor| {
            let loss = y.sqr().unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            gradients.get(&x).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(gradient(&got), gradient(&want));
        assert_eq!(
            got.to_vec2::<f32>().unwrap(),
            want.to_vec2::<f32>().unwrap()
        );
    }
}

#[test]
fn a_norm_reads_a_strided_bank() {
    let matrix = values(&[3, 40], 5);
    let view = matrix.narrow(1, 8, 16).unwrap();
    let x = values(&[2, 16], 6);
    let of = |gain: Tensor| {
        let values = SiteValues {
            gain,
            bias: None,
            trainable: false,
        };
        norm(
            &x,
            &values,
            &slots(&[2, 1]),
            (Statistic::Uncentred, 1e-5),
            Kernels::Fused,
        )
        .unwrap()
    };
    assert_eq!(
        max_difference(&of(view.clone()), &of(view.contiguous().unwrap())),
        0.0
    );
}

fn check_attention(mask: Mask, segments: Vec<Segment>, n_keys: usize, (q, kv): (usize, usize)) {
    let heads = Heads::new(q, kv, 20);
    let layout = AttentionLayout::new(segments, mask).unwrap();
    let rows = layout.segments().last().unwrap().rows.end;
    let inputs = [
        values(&[rows, q * 20], 1),
        values(&[n_keys, kv * 20], 2),
        values(&[n_keys, kv * 20], 3),
    ];
    check("attention", &inputs, |t, kernels| {
        attention((&t[0], &t[1], &t[2]), heads, &layout, kernels)
    });
}

fn segment(rows: std::ops::Range<usize>, keys: &[std::ops::Range<usize>]) -> Segment {
    Segment {
        rows,
        keys: keys.to_vec(),
    }
}

#[test]
fn attention_and_its_gradients_are_right_for_ragged_segments() {
    let causal = Mask::Causal { window: None };
    // Alone; two of different lengths; grouped queries.
    check_attention(causal, vec![segment(0..5, &[0..5])], 5, (2, 2));
    let two = vec![segment(0..19, &[0..19]), segment(19..22, &[19..22])];
    check_attention(causal, two.clone(), 22, (4, 2));
    check_attention(Mask::Bidirectional, two.clone(), 22, (4, 1));
    check_attention(Mask::Causal { window: Some(4) }, two, 22, (2, 1));
    // Two branches behind one prefix, and a decode row over three scattered spans.
    let shared = vec![
        segment(0..4, &[0..4]),
        segment(4..7, &[0..4, 4..7]),
        segment(7..9, &[0..4, 7..9]),
        segment(9..10, &[6..9, 0..2, 9..10]),
    ];
    check_attention(causal, shared.clone(), 10, (2, 2));
    check_attention(Mask::Causal { window: Some(3) }, shared, 10, (2, 2));
}

#[test]
fn attention_refuses_segments_that_do_not_fit() {
    let causal = Mask::Causal { window: None };
    assert!(AttentionLayout::new(vec![segment(1..2, &[0..2])], causal).is_err());
    assert!(AttentionLayout::new(vec![segment(0..3, &[0..2])], causal).is_err());
    let layout = AttentionLayout::new(vec![segment(0..2, &[0..9])], causal).unwrap();
    let (q, kv) = (values(&[2, 4], 1), values(&[4, 4], 2));
    let heads = Heads::new(1, 1, 4);
    assert!(attention((&q, &kv, &kv), heads, &layout, Kernels::Fused).is_err());
}

#[test]
fn rope_and_its_gradient_are_right() {
    let frequencies: Vec<f32> = (0..10).map(|i| 1.0 / 10f32.powf(i as f32 / 10.0)).collect();
    let table = RopeTable::new(&frequencies, 50, &Device::Cpu).unwrap();
    let positions = slots(&[0, 1, 49, 7]);
    check("rope", &[values(&[4, 60], 1)], |t, kernels| {
        rope(&t[0], &positions, &table, kernels)
    });
    let beyond = slots(&[0, 1, 50, 7]);
    let error = rope(&values(&[4, 60], 1), &beyond, &table, Kernels::Fused).unwrap_err();
    assert!(error.to_string().contains("position 50 is beyond the 50"));
}

#[test]
fn activations_and_their_gradients_are_right() {
    let activations = [
        Activation::Silu,
        Activation::QuickGelu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
    ];
    // Twice the usual scale, to reach the tails; half a step off zero, where ReLU has a corner.
    let x = (values(&[7, 33], 1) * 2.0).unwrap();
    let away = (&x + 1e-3).unwrap().sign().unwrap();
    let x = (&x + (away * 0.05).unwrap()).unwrap();
    let up = values(&[7, 33], 2);
    for activation in activations {
        let name = format!("{activation:?}");
        check(&name, std::slice::from_ref(&x), |t, kernels| {
            activate(&t[0], activation, kernels)
        });
        check(&name, &[x.clone(), up.clone()], |t, kernels| {
            gated(&t[0], &t[1], activation, kernels)
        });
    }
}

#[test]
fn cross_entropy_and_its_gradient_are_right() {
    let targets = slots(&[0, 36, 5, 5]);
    let logits = (values(&[4, 37], 1) * 4.0).unwrap();
    check("cross-entropy", &[logits], |t, kernels| {
        cross_entropy(&t[0], &targets, kernels)
    });
    let beyond = slots(&[0, 37, 5, 5]);
    assert!(cross_entropy(&values(&[4, 37], 1), &beyond, Kernels::Fused).is_err());
}

#[test]
fn a_frozen_linear_map_sends_its_gradient_to_the_input_only() {
    let (weight, bias) = (values(&[9, 33], 2), values(&[9], 3));
    let frozen = DenseLinear::new(&weight, Some(&bias)).unwrap();
    let x = Var::from_tensor(&values(&[6, 33], 1)).unwrap();
    let y = frozen.forward(&x).unwrap();
    let plain = x
        .matmul(&weight.t().unwrap())
        .unwrap()
        .broadcast_add(&bias)
        .unwrap();
    assert!(max_difference(&y, &plain) < 1e-5);
    let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let want = plain.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let error = max_difference(gradients.get(&x).unwrap(), want.get(&x).unwrap());
    assert!(error < 1e-3, "{error}");
    assert_eq!(frozen.bytes(), (9 * 33 + 9) * 4);
}

#[test]
fn a_quantised_linear_map_is_close_and_carries_the_gradient() {
    use candle_core::quantized::{GgmlDType, QTensor};
    use mistralrs_quant::{GgufMatMul, QuantMethod, QuantMethodConfig};
    let weight = values(&[64, 64], 2);
    let quantised = QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap();
    let bytes = quantised.storage_size_in_bytes();
    let config = QuantMethodConfig::Gguf {
        q_weight: std::sync::Arc::new(quantised),
        b: None,
    };
    let method: std::sync::Arc<dyn QuantMethod> =
        std::sync::Arc::new(<GgufMatMul as QuantMethod>::new(config).unwrap());
    let linear = QuantisedLinear::new(method, bytes);
    let x = Var::from_tensor(&values(&[6, 64], 1)).unwrap();
    let y = linear.forward(&x).unwrap();
    let plain = x.matmul(&weight.t().unwrap()).unwrap();
    // Eight bits a value: errors of up to 1/254 of a block's largest value, averaging out over 64.
    assert!(max_difference(&y, &plain) < 0.2);
    let gradient = y.sum_all().unwrap().backward().unwrap();
    let want = plain.sum_all().unwrap().backward().unwrap();
    let error = max_difference(gradient.get(&x).unwrap(), want.get(&x).unwrap());
    assert!(error < 0.2, "{error}");
    assert!(linear.bytes() < 64 * 64 * 2);
}
