//! The loss of a batch and its gradients, worked out in shards that run side by side.
//!
//! In: variables and, a shard, a function that gives its share of the loss. Out: the loss and one
//! gradient a variable. The number of shards is part of a recipe: it fixes the order of every sum, so
//! that a run gives the same values on a machine with more cores. It must not know what is learnt.

use anyhow::{Context, Result, anyhow};
use candle_core::Tensor;
use norma::model::MedVlm;
use norma::model::bank::NormBank;
use norma::model::llava::Llava;
use norma::model::ops::cross_entropy::cross_entropy;
use norma::model::ops::{Kernels, RowIndex};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batch::Packed;
use crate::optimizer::Gradients;
use crate::variables::NamedVar;

/// Worker pools, one a shard.
pub struct Shards {
    pools: Vec<ThreadPool>,
}

impl Shards {
    /// `count` shards that share the machine's cores.
    pub fn new(count: usize) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / count.max(1)).max(1);
        let pools = (0..count.max(1))
            .map(|_| ThreadPoolBuilder::new().num_threads(threads).build())
            .collect::<std::result::Result<_, _>>()
            .context("cannot start the worker threads")?;
        Ok(Self { pools })
    }

    /// The number of shards.
    pub fn count(&self) -> usize {
        self.pools.len()
    }

    /// The sum of the shards' losses and its gradients. `loss` gives a shard's share of the loss.
    pub fn gradients<T: Sync>(
        &self,
        variables: &[NamedVar],
        shards: &[T],
        loss: impl Fn(&T) -> Result<Tensor> + Sync,
    ) -> Result<(f64, Gradients)> {
        self.sum(shards, |shard| {
            let loss = loss(shard)?;
            let store = loss.backward()?;
            let gradients = variables
                .iter()
                .map(|variable| {
                    let gradient = store.get(variable.var.as_tensor());
                    gradient
                        .map(|gradient| gradient.flatten_all()?.to_vec1::<f32>())
                        .transpose()
                })
                .collect::<candle_core::Result<_>>()?;
            Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
        })
    }

    /// The sum of losses and gradients that `one` gives of each shard.
    pub fn sum<T: Sync>(
        &self,
        shards: &[T],
        one: impl Fn(&T) -> Result<(f64, Gradients)> + Sync,
    ) -> Result<(f64, Gradients)> {
        if let [shard] = shards {
            // Here: a new thread a step would have the allocator keep a place for each.
            return one(shard);
        }
        let results: Vec<Result<(f64, Gradients)>> = std::thread::scope(|scope| {
            let one = &one;
            let workers: Vec<_> = shards
                .iter()
                .zip(self.pools.iter().cycle())
                .map(|(shard, pool)| scope.spawn(move || pool.install(|| one(shard))))
                .collect();
            let join = |worker: std::thread::ScopedJoinHandle<_>| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a worker thread panicked")))
            };
            workers.into_iter().map(join).collect()
        });
        let mut total = (0.0, Vec::new());
        for result in results {
            let (loss, gradients) = result?;
            total.0 += loss;
            if total.1.is_empty() {
                total.1 = gradients;
            } else {
                add_all(&mut total.1, gradients);
            }
        }
        Ok(total)
    }
}

/// Adds gradients of the same variables.
pub fn add_all(sums: &mut Gradients, gradients: Gradients) {
    for (sum, gradient) in sums.iter_mut().zip(gradients) {
        add(sum, gradient);
    }
}

fn add(sum: &mut Option<Vec<f32>>, gradient: Option<Vec<f32>>) {
    match (sum.as_mut(), gradient) {
        (_, None) => {}
        (None, gradient) => *sum = gradient,
        (Some(sum), Some(gradient)) => {
            sum.iter_mut()
                .zip(gradient)
                .for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Mean cross-entropy of a packed batch's answer tokens. `features`: the image features of its
/// dialogues in order, if it has images.
pub fn answer_loss(
    model: &Llava,
    bank: &NormBank,
    packed: &Packed,
    features: Option<Tensor>,
) -> Result<Tensor> {
    let mut step = packed.step.clone();
    step.image_features = features;
    let logits = model.forward(&step, bank, None)?;
    let targets = RowIndex::new(&packed.targets, model.device())?;
    Ok(cross_entropy(
        &logits,
        &targets,
        Kernels::for_device(model.device()),
    )?)
}
