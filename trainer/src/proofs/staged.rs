//! Gradients stage by stage: the same to the bit whatever is kept, those of the whole graph, through every
//! type of weights, and no further back than something learns.

use candle_core::Tensor;
use norma::base::{Base, OpenOptions, WeightType};
use norma::model::MedVlm;
use norma::model::ops::cross_entropy::cross_entropy;
use norma::model::ops::{Kernels, RowIndex};
use norma::model::stages::Stages;
use norma_adapters::Scope;

use crate::batch::pack;
use crate::frozen::FrozenBase;
use crate::learner::{Shards, answer_loss};
use crate::lesson::pixels;
use crate::methods::{Choice, LayerNorm, Lora, Method, Prefix};
use crate::optimizer::Gradients;
use crate::staged::{self, Keep};
use crate::step_bench::Drawn;
use crate::variables::{NamedVar, NormVariables};

const DRAWN: Drawn = Drawn {
    images: 2,
    questions: 3,
    prompt: 5,
    answer: 4,
    seed: 3,
};

struct Run {
    base: FrozenBase,
    norms: NormVariables,
    variables: Vec<NamedVar>,
}

/// What was found: loss, gradients, and through how many stages the way back went.
type Found = (f64, Gradients, usize);

impl Run {
    fn new(method: Method, scope: Scope, weights: WeightType) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/llava/llama_a");
        let opened = Base::open(folder.as_ref(), &OpenOptions::default()).unwrap();
        let choice = Choice {
            method,
            scope,
            seed: 1,
        };
        let parameters = opened.parameters(Kernels::Fused, weights).unwrap();
        let (row, digest) = (opened.row().unwrap(), opened.digest());
        let base =
            FrozenBase::with_method(opened.config(), &parameters, row, digest, &choice).unwrap();
        let (sites, device) = (base.model.sites(), base.model.device());
        let rule = choice.norm_rule().unwrap();
        let norms = NormVariables::choose(sites, &base.row, rule, device).unwrap();
        let mut variables = base.variables.clone();
        variables.extend(norms.all().iter().cloned());
        Self {
            base,
            norms,
            variables,
        }
    }

    fn staged(&self, keep: Keep) -> Found {
        let model = &self.base.model;
        let lessons = DRAWN.lessons(model.shape()).unwrap();
        let size = model.shape().image_size;
        let pixels = pixels(lessons.iter(), size, model.device()).unwrap();
        let packed = pack(lessons.iter().map(|lesson| &lesson.dialogue));
        let stages = Stages::new(model, self.norms.bank(), &packed.step, Some(&pixels)).unwrap();
        let targets = RowIndex::new(&packed.targets, model.device()).unwrap();
        let loss = |logits: &_| Ok(cross_entropy(logits, &targets, Kernels::Fused)?);
        let mut passed = 0;
        let watch = |store: &_| {
            assert!(!self.base.appears_in(store));
            passed += 1;
            Ok(())
        };
        let (loss, gradients) =
            staged::gradients(&stages, loss, &self.variables, keep, watch).unwrap();
        (loss, gradients, passed)
    }

    fn whole(&self) -> (f64, Gradients) {
        let model = &self.base.model;
        let lessons = DRAWN.lessons(model.shape()).unwrap();
        let size = model.shape().image_size;
        let pixels = pixels(lessons.iter(), size, model.device()).unwrap();
        let packed = pack(lessons.iter().map(|lesson| &lesson.dialogue));
        let loss = |(): &()| {
            let bank = self.norms.bank();
            let features = model.encode_images(&pixels, &vec![0; lessons.len()], bank)?;
            answer_loss(model, bank, &packed, Some(features))
        };
        let shards = Shards::new(1).unwrap();
        shards.gradients(&self.variables, &[()], loss).unwrap()
    }
}

/// Cosine of the angle between two gradients as a whole.
fn cosine(one: &Gradients, other: &Gradients) -> f64 {
    let wide = |gradients: &Gradients| -> Vec<f64> {
        let values = gradients.iter().flatten().flatten();
        values.map(|value| f64::from(*value)).collect()
    };
    let (one, other) = (wide(one), wide(other));
    assert_eq!(one.len(), other.len());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&one, &other) / (dot(&one, &one) * dot(&other, &other)).sqrt()
}

#[test]
fn what_is_computed_again_gives_the_same_gradients_to_the_bit() {
    let upper = LayerNorm {
        sites: Some("layers.1.*norm".into()),
        ..LayerNorm::default()
    };
    for (method, scope) in [
        (Method::default(), Scope::All),
        (Method::default(), Scope::Vision),
        (Method::default(), Scope::Language),
        (Method::LayerNorm(upper), Scope::Language),
        (Method::Full, Scope::All),
        (Method::Lora(Lora::default()), Scope::All),
        (Method::Prefix(Prefix::default()), Scope::Language),
    ] {
        let name = format!("{} in {scope}", method.name());
        let run = Run::new(method, scope, WeightType::F32);
        let (kept, again) = (run.staged(Keep::Graph), run.staged(Keep::Inputs));
        assert_eq!(kept.0.to_bits(), again.0.to_bits(), "{name}");
        assert!(kept.1 == again.1, "{name}: gradients differ");
        assert!(kept.1.iter().all(Option::is_some), "{name}");
        let (loss, whole) = run.whole();
        assert!(
            (loss - kept.0).abs() <= 1e-6 * loss,
            "{name}: {loss} {}",
            kept.0
        );
        let apart = 1.0 - cosine(&kept.1, &whole);
        assert!(apart < 1e-9, "{name}: {apart}");
    }
}

#[test]
fn the_way_back_ends_at_the_lowest_tensor_that_learns() {
    let passed = |method: Method, scope| {
        let run = Run::new(method, scope, WeightType::F32);
        let counts = [Keep::Graph, Keep::Inputs].map(|keep| run.staged(keep).2);
        assert_eq!(counts[0], counts[1]);
        counts[0]
    };
    let run = Run::new(Method::default(), Scope::All, WeightType::F32);
    let shape = *run.base.model.shape();
    let decoder = shape.n_layers + 1; // the head too
    assert_eq!(passed(Method::default(), Scope::Language), decoder);
    // The embedding, the projector, the tower's layers and what is before them.
    let all = decoder + 1 + 1 + shape.tower_layers + 1;
    assert_eq!(passed(Method::default(), Scope::All), all);
    let last = LayerNorm {
        sites: Some(r"language_model\.model\.norm$".into()),
        ..LayerNorm::default()
    };
    assert_eq!(passed(Method::LayerNorm(last), Scope::Language), 1);
}

/// What a type rounds makes another function of the same shape, so its gradient is held against its own
/// loss: a small step against it lowers the loss by about as much as it says.
#[test]
fn gradients_flow_through_weights_of_every_type() {
    const SHARE: f64 = 0.02;
    let mut wrong = Vec::new();
    for weights in WeightType::all().filter(|weights| weights.runs_here()) {
        let run = Run::new(Method::default(), Scope::All, weights);
        let (loss, gradients, _) = run.staged(Keep::Graph);
        assert!(gradients == run.staged(Keep::Inputs).1, "{weights}");
        let values = gradients.iter().flatten().flatten();
        let square: f64 = values.map(|value| f64::from(*value).powi(2)).sum();
        let rate = (SHARE * loss / square) as f32;
        for (variable, gradient) in run.variables.iter().zip(&gradients) {
            let gradient = gradient.as_ref().unwrap();
            assert!(
                gradient.iter().any(|value| *value != 0.0),
                "{}",
                variable.name
            );
            let var = &variable.var;
            let now = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let moved = now
                .iter()
                .zip(gradient)
                .map(|(now, slope)| now - rate * slope);
            let moved = Tensor::from_vec(moved.collect(), var.dims(), var.device());
            var.set(&moved.unwrap()).unwrap();
        }
        let lowered = (loss - run.staged(Keep::Inputs).0) / (SHARE * loss);
        if !(0.6..1.4).contains(&lowered) {
            wrong.push(format!("{weights}: {lowered}"));
        }
    }
    assert!(wrong.is_empty(), "lowered by, of what was said: {wrong:?}");
}
