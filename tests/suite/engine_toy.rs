//! A model whose next token is a hash of everything before it, in whole numbers: of the tokens and
//! image rows that its keys say it has read, and of the adapter values in its slot. So a test can say
//! what an answer must be, and any mixed up row, position, slot or feature changes it.
//!
//! It can be made to fail or to panic by a token, and to wait at a gate before each step.

use std::sync::{Arc, Condvar, Mutex};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, bail};
use norma::engine::{
    Answer, Engine, EngineConfig, EngineHandle, Event, Finished, Request, RequestAdapter,
    RequestError, RequestImage, TokenEvent,
};
use norma::model::bank::NormBank;
use norma::model::key_values::KeyValues;
use norma::model::kv_cache::KvType;
use norma::model::step::{RowInput, Step};
use norma::model::{MedVlm, ModelShape};
use norma::preprocess::{PromptToken, SpecialTokens, TextTokenizer};
use norma_adapters::{AdapterValues, Generation, Part, Scope, Site, SiteKind, SiteTable};
use tokenizers::models::wordlevel::WordLevel;

pub const VOCAB: u32 = 50;
pub const EOS: u32 = 1;
/// Makes a step that reads it panic while it holds the KV cache's lock.
pub const PANICS: u32 = 48;
/// Makes a step that reads it fail.
pub const FAILS: u32 = 49;
/// The pixel that makes the encoder fail.
pub const BAD_PIXEL: f32 = 99.0;
/// The pixel that makes the encoder panic.
pub const PANIC_PIXEL: f32 = 98.0;
const IMAGE_TOKENS: usize = 3;
const IMAGE_SIZE: usize = 2;

/// What a step was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSeen {
    pub rows: usize,
    pub sequences: usize,
}

/// The test's hand on the model.
#[derive(Debug, Default)]
pub struct Control {
    gate: Mutex<Gate>,
    changed: Condvar,
    steps: Mutex<Vec<StepSeen>>,
}

#[derive(Debug, Default)]
struct Gate {
    /// Steps that may pass; `None`: all.
    permits: Option<usize>,
    /// Steps that have come to the gate.
    arrived: usize,
}

impl Control {
    /// Lets only so many more steps pass.
    pub fn permit(&self, steps: usize) {
        self.gate.lock().unwrap().permits = Some(steps);
        self.changed.notify_all();
    }

    /// Lets all steps pass.
    pub fn open(&self) {
        self.gate.lock().unwrap().permits = None;
        self.changed.notify_all();
    }

    /// Waits until so many steps have come to the gate since the start.
    pub fn wait_arrived(&self, steps: usize) {
        let gate = self.gate.lock().unwrap();
        drop(
            self.changed
                .wait_while(gate, |gate| gate.arrived < steps)
                .unwrap(),
        );
    }

    /// The steps that the model was asked for.
    pub fn steps(&self) -> Vec<StepSeen> {
        self.steps.lock().unwrap().clone()
    }

    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.arrived += 1;
        self.changed.notify_all();
        let mut gate = self
            .changed
            .wait_while(gate, |gate| gate.permits == Some(0))
            .unwrap();
        gate.permits = gate.permits.map(|permits| permits - 1);
    }
}

struct Toy {
    sites: SiteTable,
    shape: ModelShape,
    control: Arc<Control>,
}

fn sites() -> SiteTable {
    let site = |name: &str, part| Site {
        name: name.into(),
        kind: SiteKind::RmsNorm,
        width: 1,
        part,
        used: true,
    };
    let tower = site("vision_tower.norm", Part::Vision);
    SiteTable::new(vec![tower, site("language_model.norm", Part::Language)]).unwrap()
}

/// The row of the base.
fn base_row() -> Vec<f32> {
    vec![1.0, 1.0]
}

/// The row of adapter `id`: no other's, at both sites.
fn row(id: u8) -> Vec<f32> {
    vec![2.0 + 3.0 * f32::from(id), 4.0 + 5.0 * f32::from(id)]
}

pub fn adapter(id: u8) -> RequestAdapter {
    RequestAdapter {
        generation: Generation::of(&[id]),
        values: AdapterValues::new(&sites(), row(id), Scope::All).unwrap(),
    }
}

/// One whose row is too long for the toy.
pub fn adapter_of_another_base() -> RequestAdapter {
    let mut site = sites().sites()[1].clone();
    site.width = 7;
    let table = SiteTable::new(vec![site]).unwrap();
    RequestAdapter {
        generation: Generation::of(&[0]),
        values: AdapterValues::new(&table, vec![1.0; 7], Scope::All).unwrap(),
    }
}

fn feature(pixel: f32, gain: f32, patch: usize) -> f32 {
    100.0 + 7.0 * pixel + 13.0 * gain + patch as f32
}

fn absorb(hash: u64, key: f32, value: f32) -> u64 {
    (hash * 31 + key as u64 + 17 * value as u64 + 1) % 65_521
}

/// Never chooses a token that makes a step fail.
fn logits(hash: u64) -> Vec<f32> {
    let harmless = u64::from(PANICS);
    let noise = |token: u64| ((hash + token * 37) % 101) as f32 / 101.0;
    let logit = |token: u64| match token {
        token if token >= harmless => f32::NEG_INFINITY,
        token if token == hash % harmless => noise(token) + 5.0,
        token => noise(token),
    };
    (0..u64::from(VOCAB)).map(logit).collect()
}

impl MedVlm for Toy {
    fn sites(&self) -> &SiteTable {
        &self.sites
    }

    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn encode_images(&self, pixels: &Tensor, slots: &[u32], bank: &NormBank) -> Result<Tensor> {
        let gains = bank.site(0)?.to_values()?.gain.to_vec2::<f32>()?;
        let pixels = pixels.flatten_from(1)?.to_vec2::<f32>()?;
        if pixels.len() != slots.len() {
            bail!("{} images, {} slots", pixels.len(), slots.len());
        }
        let mut features = Vec::new();
        for (pixels, slot) in pixels.iter().zip(slots) {
            assert!(pixels[0] != PANIC_PIXEL, "as the test asked");
            if pixels[0] == BAD_PIXEL {
                bail!("a bad picture");
            }
            let gain = gains[*slot as usize][0];
            features.extend((0..IMAGE_TOKENS).map(|patch| feature(pixels[0], gain, patch)));
        }
        let rows = features.len();
        Tensor::from_vec(features, (rows, 1), &Device::Cpu)
    }

    fn forward(
        &self,
        step: &Step,
        bank: &NormBank,
        cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor> {
        let seen = StepSeen {
            rows: step.len(),
            sequences: step.segments.len(),
        };
        self.control.steps.lock().unwrap().push(seen);
        self.control.pass();
        let tensors = step.tensors(None, bank.n_slots(), &Device::Cpu)?;
        let features = match &step.image_features {
            Some(features) => features.flatten_all()?.to_vec1::<f32>()?,
            None => Vec::new(),
        };
        let gains = bank.site(1)?.to_values()?.gain.to_vec2::<f32>()?;
        let key = |input: &RowInput| match input {
            RowInput::Token(token) => *token as f32,
            RowInput::Feature(row) => features[*row as usize],
        };
        let keys: Vec<f32> = step.inputs.iter().map(key).collect();
        let values: Vec<f32> = step
            .slots
            .iter()
            .map(|slot| gains[*slot as usize][0])
            .collect();
        let column = |values| Tensor::from_vec(values, (step.len(), 1), &Device::Cpu);
        let rows = cache.and_then(KeyValues::as_rows);
        let (keys, values) = step.keys_and_values(0, (column(keys)?, column(values)?), rows)?;
        if step.inputs.contains(&RowInput::Token(FAILS)) {
            bail!("a bad token");
        }
        if step.inputs.contains(&RowInput::Token(PANICS)) {
            keys.inplace_op1(&Panic)?;
        }
        let keys = keys.flatten_all()?.to_vec1::<f32>()?;
        let values = values.flatten_all()?.to_vec1::<f32>()?;
        let mut wanted = Vec::new();
        for row in &step.logits_rows {
            let row = *row as usize;
            let segment = step
                .segments
                .iter()
                .find(|s| s.rows.contains(&row))
                .unwrap();
            let visible = tensors.layout.visible(segment, row);
            if step.positions[row] as usize + 1 != visible.end {
                bail!(
                    "row {row} is at {}, but sees {visible:?}",
                    step.positions[row]
                );
            }
            let rows = segment.keys.iter().cloned().flatten().take(visible.end);
            wanted.extend(logits(
                rows.fold(0, |hash, row| absorb(hash, keys[row], values[row])),
            ));
        }
        Tensor::from_vec(
            wanted,
            (step.logits_rows.len(), VOCAB as usize),
            &Device::Cpu,
        )
    }
}

/// Panics while the storage is locked for writing, as a kernel might.
struct Panic;

impl InplaceOp1 for Panic {
    fn name(&self) -> &'static str {
        "panic"
    }

    fn cpu_fwd(&self, _storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        panic!("as the test asked")
    }
}

/// Words `t0`, `t1`, ... with blanks between them.
fn tokenizer() -> TextTokenizer {
    let words = (0..VOCAB)
        .map(|token| (format!("t{token}"), token))
        .collect();
    let model = WordLevel::builder()
        .vocab(words)
        .unk_token("t0".into())
        .build()
        .unwrap();
    let special = SpecialTokens {
        eos: vec![EOS],
        ..SpecialTokens::default()
    };
    TextTokenizer::new(tokenizers::Tokenizer::new(model), special)
}

/// Small limits, so that everything is scarce.
pub fn config() -> EngineConfig {
    EngineConfig {
        max_sequences: 8,
        max_step_tokens: 12,
        max_rows_beside_answers: 12,
        max_step_images: 2,
        kv_rows: 320,
        kv_type: KvType::F32,
        block_rows: 4,
        bank_slots: 4,
        queue_len: 100,
        prefix_cache: true,
        image_cache_bytes: 1 << 20,
    }
}

pub fn start(config: EngineConfig) -> (EngineHandle, Arc<Control>) {
    let control = Arc::new(Control::default());
    let shape = ModelShape {
        vocab_size: VOCAB as usize,
        max_positions: 120,
        image_size: IMAGE_SIZE,
        image_tokens: IMAGE_TOKENS,
        tower_rows: 5,
        tower_layers: 2,
        n_layers: 1,
        kv_width: 1,
        head_dim: 1,
    };
    let toy = Toy {
        sites: sites(),
        shape,
        control: Arc::clone(&control),
    };
    let tokenizer = Arc::new(tokenizer());
    let handle = Engine::start(Box::new(toy), base_row(), tokenizer, config).unwrap();
    (handle, control)
}

/// A greedy request: an image for each pixel, then the tokens.
pub fn request(pixels: &[f32], tokens: &[u32], max_tokens: usize) -> Request {
    let image = |image: usize| {
        (0..IMAGE_TOKENS).map(move |patch| PromptToken::Image {
            image: image as u32,
            patch: patch as u32,
        })
    };
    let prompt = (0..pixels.len())
        .flat_map(image)
        .chain(tokens.iter().map(|token| PromptToken::Text(*token)))
        .collect();
    let shape = (3, IMAGE_SIZE, IMAGE_SIZE);
    Request {
        images: pixels
            .iter()
            .map(|pixel| Tensor::full(*pixel, shape, &Device::Cpu))
            .map(|pixels| RequestImage::new(pixels.unwrap()).unwrap())
            .collect(),
        ignore_eos: true,
        ..Request::new("tenant".into(), prompt, max_tokens)
    }
}

/// The tokens that a request made by [`request`] must get.
pub fn expected(
    pixels: &[f32],
    tokens: &[u32],
    max_tokens: usize,
    adapter: Option<u8>,
) -> Vec<u32> {
    let row = adapter.map_or_else(base_row, row);
    let features = pixels
        .iter()
        .flat_map(|pixel| (0..IMAGE_TOKENS).map(move |patch| (*pixel, patch)))
        .map(|(pixel, patch)| feature(pixel, row[0], patch));
    let keys = features.chain(tokens.iter().map(|token| *token as f32));
    let mut hash = keys.fold(0, |hash, key| absorb(hash, key, row[1]));
    let mut answer = Vec::new();
    while answer.len() < max_tokens {
        let logits = logits(hash);
        let best = (0..VOCAB)
            .filter(|token| *token != EOS)
            .max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]))
            .unwrap();
        answer.push(best);
        hash = absorb(hash, best as f32, row[1]);
    }
    answer
}

/// An answer to its end.
pub fn collect(
    mut answer: Answer,
) -> (Vec<TokenEvent>, std::result::Result<Finished, RequestError>) {
    let mut tokens = Vec::new();
    loop {
        match answer.blocking_recv().unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => {
                assert_eq!(answer.blocking_recv(), None);
                return (tokens, Ok(finished));
            }
            Event::Failed(error) => {
                assert_eq!(answer.blocking_recv(), None);
                return (tokens, Err(error));
            }
        }
    }
}

/// The tokens of an answer that must be complete.
pub fn tokens(answer: Answer) -> Vec<u32> {
    let (tokens, end) = collect(answer);
    end.unwrap();
    tokens.into_iter().map(|token| token.token).collect()
}
