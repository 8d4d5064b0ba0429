//! Gradients of a forward pass that is cut into stages: the way back goes stage by stage.
//!
//! In: stages, what makes a loss of the last one's result, variables. Out: the loss and one gradient a
//! variable. Of each stage either its whole graph is kept until the way back has passed it, or only its
//! inputs, from which it is computed again: the same operations on the same values, so the same gradients to
//! the bit. No stage is gone back through unless something that learns lies in it or before it. It must not
//! know what learns.

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var};
use norma::model::stages::Stages;

use crate::optimizer::Gradients;
use crate::variables::NamedVar;

/// What is kept of a stage for the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All that its operations need.
    Graph,
    /// Its inputs.
    Inputs,
}

/// A stage on the way back.
struct Passed {
    /// Its result; with [`Keep::Graph`] a variable if anything that learns has a part in it.
    result: Tensor,
    /// The result with its operations, if they are kept.
    graph: Option<Tensor>,
    /// Whether anything that learns has a part in it.
    learns: bool,
}

/// `loss` makes a scalar of the last stage's result. `watch` sees every stage's gradients.
pub fn gradients(
    stages: &Stages,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
    variables: &[NamedVar],
    keep: Keep,
    mut watch: impl FnMut(&GradStore) -> Result<()>,
) -> Result<(f64, Gradients)> {
    let n = stages.len();
    let run = |stage: usize, inputs: &[Tensor]| -> Result<Tensor> {
        let result = stages.run(stage, inputs)?;
        if stage + 1 == n {
            loss(&result)
        } else {
            Ok(result)
        }
    };
    let mut passed: Vec<Passed> = Vec::with_capacity(n);
    for stage in 0..n {
        let before = stages.inputs(stage);
        let inputs: Vec<Tensor> = before.iter().map(|at| passed[*at].result.clone()).collect();
        let result = run(stage, &inputs)?;
        let learns = result.track_op() || before.iter().any(|at| passed[*at].learns);
        passed.push(match keep {
            Keep::Graph if learns => Passed {
                result: Var::from_tensor(&result)?.into_inner(),
                graph: Some(result),
                learns,
            },
            _ => Passed {
                result: result.detach(),
                graph: None,
                learns,
            },
        });
    }
    let mut value = 0.0;
    let mut sums: Gradients = vec![None; variables.len()];
    let mut of_results: Vec<Option<Tensor>> = vec![None; n];
    for stage in (0..n).rev() {
        let Some(Passed {
            result,
            graph,
            learns,
        }) = passed.pop()
        else {
            break;
        };
        if stage + 1 == n {
            value = f64::from(result.to_scalar::<f32>()?);
        }
        // Neither is needed any more: nobody before this stage reads its result.
        drop(result);
        let gradient = of_results[stage].take();
        if !learns || (gradient.is_none() && stage + 1 < n) {
            continue;
        }
        let before = stages.inputs(stage);
        let leaf = |at: &usize| {
            let Passed { result, learns, .. } = &passed[*at];
            if *learns && !result.is_variable() {
                return Ok(Var::from_tensor(result)?.into_inner());
            }
            Ok(result.clone())
        };
        let leaves: Vec<Tensor> = before.iter().map(leaf).collect::<Result<_>>()?;
        let result = match graph {
            Some(graph) => graph,
            None => run(stage, &leaves)?,
        };
        let store = match gradient {
            Some(gradient) => result.apply_op1(Pull(gradient))?.backward()?,
            None => result.backward()?,
        };
        drop(result);
        watch(&store)?;
        for (sum, variable) in sums.iter_mut().zip(variables) {
            if let Some(gradient) = store.get(variable.var.as_tensor()) {
                add(sum, &gradient.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        for (at, leaf) in before.iter().zip(&leaves) {
            let Some(gradient) = store.get(leaf) else {
                continue;
            };
            of_results[*at] = Some(match of_results[*at].take() {
                None => gradient.clone(),
                Some(sum) => (sum + gradient)?,
            });
        }
    }
    Ok((value, sums))
}

fn add(sum: &mut Option<Vec<f32>>, gradient: &[f32]) {
    match sum {
        None => *sum = Some(gradient.to_vec()),
        Some(sum) => {
            for (sum, value) in sum.iter_mut().zip(gradient) {
                *sum += value;
            }
        }
    }
}

/// A scalar whose gradient with respect to its argument is given: where the way back goes on with what a later
/// stage found.
struct Pull(Tensor);

impl CustomOp1 for Pull {
    fn name(&self) -> &'static str {
        "pull"
    }

    fn cpu_fwd(
        &self,
        _storage: &CpuStorage,
        _layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(
        &self,
        _argument: &Tensor,
        _result: &Tensor,
        _gradient: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
