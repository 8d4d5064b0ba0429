//! Against torch, and against plain sums.

use candle_core::{Device, Tensor, Var};

use super::*;

fn variable(values: &[f32]) -> NamedVar {
    let tensor = Tensor::new(values, &Device::Cpu).unwrap();
    NamedVar {
        name: "w".into(),
        var: Var::from_tensor(&tensor).unwrap(),
    }
}

/// Expected values from torch 2.12.1:
/// `p = Parameter(tensor([1., -2., 3.])); o = AdamW([p], lr=.1, weight_decay=.1)`, gradients
/// `[.5, -1., 2.]` then `[-1., .25, 0.]`.
#[test]
fn two_steps_give_torchs_values() {
    let variable = variable(&[1.0, -2.0, 3.0]);
    let group = Group {
        rate_scale: 1.0,
        weight_decay: 0.1,
    };
    let mut optimizer = AdamW::new([variable.clone()], |_| group, AdamConfig::default());
    for gradient in [[0.5f32, -1.0, 2.0], [-1.0, 0.25, 0.0]] {
        optimizer.step(&vec![Some(gradient.to_vec())], 0.1).unwrap();
    }
    let got = variable.var.to_vec1::<f32>().unwrap();
    for (got, want) in got.iter().zip(TORCH) {
        assert!((got - want).abs() < 2e-6, "{got} {want}");
    }
}

const TORCH: [f32; 3] = [0.917_710_4, -1.814_253_2, 2.774_294_4];

/// Decay towards the start is torch's decay towards zero of the distance from the start.
#[test]
fn decay_towards_the_start_is_decay_of_the_distance() {
    let (start, distance) = ([4.0f32, -7.0, 0.5], [1.0f32, -2.0, 3.0]);
    let moved: Vec<f32> = start.iter().zip(distance).map(|(a, b)| a + b).collect();
    let anchored = variable(&start);
    let none = Group {
        rate_scale: 1.0,
        weight_decay: 0.0,
    };
    let mut optimizer = AdamW::new([anchored.clone()], |_| none, AdamConfig::default());
    optimizer.decay_to_start(0.1).unwrap();
    let moved = Tensor::new(moved, &Device::Cpu).unwrap();
    anchored.var.set(&moved).unwrap();
    for gradient in [[0.5f32, -1.0, 2.0], [-1.0, 0.25, 0.0]] {
        optimizer.step(&vec![Some(gradient.to_vec())], 0.1).unwrap();
    }
    let got = anchored.var.to_vec1::<f32>().unwrap();
    for ((got, start), want) in got.iter().zip(start).zip(TORCH) {
        assert!((got - start - want).abs() < 4e-6, "{got} {start} {want}");
    }
}

#[test]
fn moments_that_come_back_go_on_to_the_bit() {
    let gradients = [[0.5f32, -1.0, 2.0], [-1.0, 0.25, 0.0], [0.1, 0.7, -0.3]];
    let group = Group {
        rate_scale: 1.0,
        weight_decay: 0.1,
    };
    let make = |values: &[f32]| {
        let variable = variable(values);
        let optimizer = AdamW::new([variable.clone()], |_| group, AdamConfig::default());
        (variable, optimizer)
    };
    let (whole, mut optimizer) = make(&[1.0, -2.0, 3.0]);
    let mut halfway = None;
    for (at, gradient) in gradients.iter().enumerate() {
        if at == 2 {
            let moments: Vec<Moments> = optimizer
                .moments()
                .map(|(mean, square)| (mean.to_vec(), square.to_vec()))
                .collect();
            halfway = Some((whole.var.to_vec1::<f32>().unwrap(), moments));
        }
        optimizer.step(&vec![Some(gradient.to_vec())], 0.1).unwrap();
    }
    let (values, moments) = halfway.unwrap();
    let (resumed, mut optimizer) = make(&values);
    assert!(optimizer.restore(2, Vec::new()).is_err());
    assert!(optimizer.restore(2, vec![(vec![0.0], vec![0.0])]).is_err());
    optimizer.restore(2, moments).unwrap();
    optimizer
        .step(&vec![Some(gradients[2].to_vec())], 0.1)
        .unwrap();
    let bits = |one: &NamedVar| {
        let values = one.var.to_vec1::<f32>().unwrap();
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&whole), bits(&resumed));
}

#[test]
fn clones_of_a_variable_see_the_step() {
    let variable = variable(&[1.0]);
    let seen = variable.var.as_tensor().clone();
    let group = Group {
        rate_scale: 1.0,
        weight_decay: 0.0,
    };
    let mut optimizer = AdamW::new([variable], |_| group, AdamConfig::default());
    optimizer.step(&vec![Some(vec![2.0])], 0.25).unwrap();
    assert!((seen.to_vec1::<f32>().unwrap()[0] - 0.75).abs() < 1e-6);
    optimizer.step(&vec![None], 0.25).unwrap();
    assert!((seen.to_vec1::<f32>().unwrap()[0] - 0.75).abs() < 1e-6);
    assert!(optimizer.step(&vec![], 0.25).is_err());
}

#[test]
fn clipping_keeps_the_direction() {
    let mut gradients = vec![Some(vec![3.0f32]), None, Some(vec![0.0, 4.0])];
    assert!((clip(&mut gradients, 10.0) - 5.0).abs() < 1e-12);
    assert_eq!(gradients[0].as_deref(), Some(&[3.0f32][..]));
    assert!((clip(&mut gradients, 1.0) - 5.0).abs() < 1e-12);
    assert!((gradients[0].as_ref().unwrap()[0] - 0.6).abs() < 1e-6);
    assert!((gradients[2].as_ref().unwrap()[1] - 0.8).abs() < 1e-6);
}

#[test]
fn the_rate_rises_then_falls_to_its_floor() {
    let schedule = Schedule {
        peak: 1.0,
        warm_up: 4,
        steps: 14,
        floor: 0.1,
    };
    assert!((schedule.rate(0) - 0.25).abs() < 1e-12);
    assert!((schedule.rate(3) - 1.0).abs() < 1e-12);
    assert!((schedule.rate(9) - 0.55).abs() < 1e-12);
    assert!((schedule.rate(14) - 0.1).abs() < 1e-12);
    assert!((schedule.rate(99) - 0.1).abs() < 1e-12);
}
