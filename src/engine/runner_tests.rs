//! What is left of the runner after a panic outside of the model.

use candle_core::{DType, Device, Result, Tensor};
use norma_adapters::{Part, Site, SiteKind, SiteTable};
use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::engine::request::{Answer, Event, Request};
use crate::model::ModelShape;
use crate::model::bank::NormBank;
use crate::model::key_values::KeyValues;
use crate::model::step::Step;
use crate::preprocess::{PromptToken, SpecialTokens};

/// Gives every token the same logit.
struct Flat {
    sites: SiteTable,
    shape: ModelShape,
}

impl MedVlm for Flat {
    fn sites(&self) -> &SiteTable {
        &self.sites
    }

    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn encode_images(&self, _pixels: &Tensor, _slots: &[u32], _bank: &NormBank) -> Result<Tensor> {
        candle_core::bail!("no image is asked about")
    }

    fn forward(
        &self,
        step: &Step,
        _bank: &NormBank,
        _cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor> {
        Tensor::zeros(
            (step.logits_rows.len(), self.shape.vocab_size),
            DType::F32,
            &Device::Cpu,
        )
    }
}

fn runner(max_sequences: usize) -> Runner {
    let site = Site {
        name: "language_model.norm".into(),
        kind: SiteKind::RmsNorm,
        width: 1,
        part: Part::Language,
        used: true,
    };
    let shape = ModelShape {
        vocab_size: 3,
        max_positions: 9,
        image_size: 1,
        image_tokens: 1,
        tower_rows: 1,
        tower_layers: 1,
        n_layers: 1,
        kv_width: 1,
        head_dim: 1,
    };
    let model = Flat {
        sites: SiteTable::new(vec![site]).unwrap(),
        shape,
    };
    let tokenizer = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
    let tokenizer = Arc::new(TextTokenizer::new(tokenizer, SpecialTokens::default()));
    let config = EngineConfig {
        max_sequences,
        ..EngineConfig::default()
    };
    Runner::new(
        Box::new(model),
        vec![1.0],
        tokenizer,
        config,
        Arc::default(),
    )
    .unwrap()
}

fn ask(runner: &mut Runner) -> Answer {
    let (events, receiver) = unbounded_channel();
    let request = Request::new("tenant".into(), vec![PromptToken::Text(1)], 2);
    runner.board.waiting.fetch_add(1, Ordering::Relaxed);
    runner.accept(Submitted {
        prefix: None,
        request,
        events,
        at: Instant::now(),
    });
    Answer::new(receiver)
}

#[test]
fn after_a_panic_elsewhere_the_running_fail_and_the_waiting_are_answered() {
    let mut runner = runner(1);
    let [mut runs, mut waits] = [ask(&mut runner), ask(&mut runner)];
    runner.step().unwrap();
    assert!(matches!(runs.blocking_recv(), Some(Event::Token(_))));
    runner.recover().unwrap();
    assert_eq!(
        runs.blocking_recv(),
        Some(Event::Failed(RequestError::Panicked))
    );
    assert_eq!(
        (
            runner.stats.panics,
            runner.stats.running,
            runner.stats.kv_rows_used
        ),
        (1, 0, 0)
    );
    assert_eq!(runner.board.waiting.load(Ordering::Relaxed), 1);
    while !runner.is_idle() {
        runner.step().unwrap();
    }
    for _ in 0..2 {
        assert!(matches!(waits.blocking_recv(), Some(Event::Token(_))));
    }
    let Some(Event::Finished(finished)) = waits.blocking_recv() else {
        panic!("it must finish")
    };
    assert_eq!(
        (finished.reason, finished.completion_tokens),
        (FinishReason::Length, 2)
    );
    assert_eq!(runner.board.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn a_runner_that_stops_tells_everybody() {
    let mut runner = runner(1);
    let answers = [ask(&mut runner), ask(&mut runner)];
    runner.step().unwrap();
    let board = Arc::clone(&runner.board);
    runner.stop();
    let ends = answers.map(|mut answer| {
        std::iter::from_fn(|| answer.blocking_recv())
            .filter(Event::is_terminal)
            .collect::<Vec<_>>()
    });
    assert_eq!(
        ends,
        [(); 2].map(|()| vec![Event::Failed(RequestError::Stopped)])
    );
    let stats = lock(&board.stats).clone();
    assert_eq!((stats.running, stats.finished.failed), (0, 2));
}
