//! Linear maps whose weights are trained: forward, and the gradients of input, weight and bias.
//!
//! candle's own product and broadcast sum give the same. On the CPU this is one operation instead of
//! three, and the bias gradient is one pass over the rows.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::cpu::{self, contiguous_slice};

/// `x weight^T (+ bias)`. `x`: `[rows, in]`; `weight`: `[out, in]`; `bias`: `[out]`.
pub fn trained_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return composed(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, TrainedLinear),
        None => x.apply_op2(&weight, TrainedLinear),
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

struct TrainedLinear;

fn product(
    x: &CpuStorage,
    x_layout: &Layout,
    weight: &CpuStorage,
    weight_layout: &Layout,
) -> Result<(CpuStorage, Shape)> {
    let (rows, n_in) = x_layout.shape().dims2()?;
    let (n_out, expected) = weight_layout.shape().dims2()?;
    if n_in != expected {
        bail!("a linear map of {expected} inputs got rows of {n_in}");
    }
    let transposed = weight_layout.transpose(0, 1)?;
    let y = x.matmul(weight, (1, rows, n_out, n_in), x_layout, &transposed)?;
    Ok((y, Shape::from((rows, n_out))))
}

fn gradients(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
    // Detached, so that the gradients themselves are not tracked.
    let (grad, x_values) = (grad.contiguous()?, x.detach());
    let grad_x = x
        .track_op()
        .then(|| grad.matmul(&weight.detach()))
        .transpose()?;
    Ok((grad_x, grad.t()?.matmul(&x_values)?))
}

impl CustomOp2 for TrainedLinear {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        product(x, x_layout, weight, weight_layout)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_weight) = gradients(x, weight, grad)?;
        Ok((grad_x, Some(grad_weight)))
    }
}

impl CustomOp3 for TrainedLinear {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = contiguous_slice(bias, bias_layout)?;
        let (mut y, shape) = product(x, x_layout, weight, weight_layout)?;
        let CpuStorage::F32(values) = &mut y else {
            bail!("trained weights are f32")
        };
        for row in values.chunks_exact_mut(bias.len().max(1)) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_weight) = gradients(x, weight, grad)?;
        let grad_bias = cpu::with_slices([grad], |[grad]| {
            let mut sums = vec![0f32; bias.elem_count()];
            for row in grad.chunks_exact(sums.len().max(1)) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            Ok(sums)
        })?;
        let grad_bias = Tensor::from_vec(grad_bias, bias.shape(), bias.device())?;
        Ok((grad_x, Some(grad_weight), Some(grad_bias)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn fused_equals_composed_in_value_and_gradients() {
        let values = |n: usize| {
            (0..n)
                .map(|i| ((i * 29 % 83) as f32 - 41.0) / 40.0)
                .collect()
        };
        let var = |dims: &[usize]| {
            let values: Vec<f32> = values(dims.iter().product());
            Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
        };
        let (x, weight, bias) = (var(&[7, 5]), var(&[3, 5]), var(&[3]));
        for bias in [None, Some(&bias)] {
            let run = |fused: bool| {
                let bias = bias.map(Var::as_tensor);
                let y = if fused {
                    trained_linear(&x, &weight, bias)
                } else {
                    composed(&x, &weight, bias)
                };
                let y = y.unwrap();
                let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let mut out = vec![y];
                let vars = [Some(&x), Some(&weight), bias.and(None)];
                out.extend(
                    vars.into_iter()
                        .flatten()
                        .map(|var| store.get(var).unwrap().clone()),
                );
                out.extend(bias.map(|bias| store.get(bias).unwrap().clone()));
                out
            };
            for (fused, composed) in run(true).iter().zip(&run(false)) {
                assert_eq!(fused.dims(), composed.dims());
                let distance = (fused - composed)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap();
                assert!(distance.to_scalar::<f32>().unwrap() < 1e-5);
            }
        }
    }

    #[test]
    fn untracked_inputs_get_no_gradient() {
        let x = Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = Var::from_tensor(&x).unwrap();
        let y = trained_linear(&x, &weight, None).unwrap();
        let store = y.sum_all().unwrap().backward().unwrap();
        assert!(store.get(&weight).is_some());
        assert!(store.get(&x).is_none());
    }
}
