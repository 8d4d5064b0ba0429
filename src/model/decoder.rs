//! The Llama and Mistral decoder: rows of embeddings in, logits of the wanted rows out.
//!
//! Reference: `LlamaForCausalLM` and `MistralForCausalLM` of transformers 5.23.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor};

use super::bank::NormBank;
use super::config::DecoderConfig;
use super::key_values::{self, Attend, KeyValues, StepOfHeads};
use super::linear::Linear;
use super::norm_site::{NormContext, NormSite, SiteList, language_rms_norm};
use super::ops::activation::{Activation, gated};
use super::ops::attention::Heads;
use super::ops::rope::{RopeTable, rope};
use super::ops::{Kernels, RowIndex, add_branch};
use super::parameters::{ParameterError, Parameters};
use super::prefix::Prefix;
use super::step::{RowInput, Step, StepTensors};

const PREFIX: &str = "language_model.model";
const HEAD: &str = "language_model.lm_head";

/// Token embedding, layers, final norm and head.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: DecoderConfig,
    embed_tokens: Tensor,
    layers: Vec<DecoderLayer>,
    norm: NormSite,
    lm_head: Linear,
    rope: RopeTable,
    prefix: Option<Prefix>,
    heads: Heads,
    kernels: Kernels,
    activations: DType,
}

/// A step as the layers see it.
#[derive(Debug)]
pub struct ReadyStep<'a> {
    step: Cow<'a, Step>,
    tensors: StepTensors,
}

#[derive(Clone, Debug)]
struct DecoderLayer {
    index: usize,
    input_layernorm: NormSite,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: NormSite,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    hidden_act: Activation,
}

impl Decoder {
    /// Asks for all parameters and declares all sites.
    pub fn new(
        config: &DecoderConfig,
        parameters: &dyn Parameters,
        sites: &mut SiteList,
        kernels: Kernels,
    ) -> std::result::Result<Self, ParameterError> {
        let hidden = config.hidden_size;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let norms = ["input_layernorm", "post_attention_layernorm"].map(|name| {
                let name = format!("{PREFIX}.layers.{layer}.{name}");
                sites.declare(language_rms_norm(name, hidden), config.rms_norm_eps)
            });
            layers.push(DecoderLayer::new(config, layer, norms, parameters)?);
        }
        let norm = sites.declare(
            language_rms_norm(format!("{PREFIX}.norm"), hidden),
            config.rms_norm_eps,
        );
        let embedding = format!("{PREFIX}.embed_tokens");
        let table = [config.vocab_size, hidden];
        let embed_tokens = parameters.table(&format!("{embedding}.weight"), &table)?;
        let lm_head = if config.tie_word_embeddings {
            Linear::shared(parameters, &embedding, &embed_tokens)?
        } else {
            Linear::new(parameters, HEAD, &table, false)?
        };
        let rope = RopeTable::new(
            &config.inverse_frequencies(),
            config.max_position_embeddings,
            parameters.device(),
        )
        .map_err(ParameterError::reading("rotary table"))?;
        Ok(Self {
            config: config.clone(),
            embed_tokens,
            layers,
            norm,
            lm_head,
            rope,
            prefix: Prefix::read(
                parameters,
                (0..config.num_hidden_layers)
                    .map(|layer| format!("{PREFIX}.layers.{layer}.self_attn")),
                config.kv_width(),
            )?,
            heads: Heads::new(
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
            ),
            kernels,
            activations: parameters.activations(),
        })
    }

    /// Positions that a learned prefix takes from every sequence.
    pub fn prefix_tokens(&self) -> usize {
        self.prefix.as_ref().map_or(0, Prefix::tokens)
    }

    /// Logits of the step's wanted rows, `[wanted, vocab]`.
    pub fn forward(
        &self,
        step: &Step,
        bank: &NormBank,
        cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor> {
        let ready = self.prepare(step, bank)?;
        let mut x = self.embed(&ready, step.image_features.as_ref())?;
        let attention = self.attention(&ready, cache)?;
        let context = self.context(bank, &ready.tensors.slots);
        for layer in &self.layers {
            x = layer.forward(&x, (&ready.tensors, &*attention), &self.rope, context)?;
        }
        self.head(&x, &ready, bank)
    }

    /// What all layers need of a step.
    pub fn prepare<'a>(&self, step: &'a Step, bank: &NormBank) -> Result<ReadyStep<'a>> {
        let step = match &self.prefix {
            Some(prefix) => Cow::Owned(prefix.behind(step)),
            None => Cow::Borrowed(step),
        };
        let tensors = step.tensors(
            self.config.sliding_window,
            bank.n_slots(),
            self.embed_tokens.device(),
        )?;
        Ok(ReadyStep { step, tensors })
    }

    /// The number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// One layer of a step without a cache: the stream, `[rows, hidden]`, before it and after it.
    pub fn layer(
        &self,
        index: usize,
        x: &Tensor,
        ready: &ReadyStep,
        bank: &NormBank,
    ) -> Result<Tensor> {
        let attention = self.attention(ready, None)?;
        let context = self.context(bank, &ready.tensors.slots);
        self.layers[index].forward(x, (&ready.tensors, &*attention), &self.rope, context)
    }

    /// Logits of the wanted rows, from the stream behind the last layer.
    pub fn head(&self, x: &Tensor, ready: &ReadyStep, bank: &NormBank) -> Result<Tensor> {
        let mut x = x.clone();
        if !ready.step.wants_all_logits() {
            x = x.index_select(ready.tensors.logits_rows.device(), 0)?; // [wanted, hidden]
        }
        let context = self.context(bank, &ready.tensors.logits_slots);
        let logits = self.lm_head.forward(&self.norm.forward(&x, context)?)?;
        logits.to_dtype(DType::F32)
    }

    fn attention<'a>(
        &'a self,
        ready: &'a ReadyStep,
        cache: Option<&'a dyn KeyValues>,
    ) -> Result<Box<dyn Attend + 'a>> {
        let of = StepOfHeads {
            step: &ready.step,
            layout: &ready.tensors.layout,
            heads: self.heads,
            kernels: self.kernels,
        };
        match &self.prefix {
            Some(prefix) => prefix.begin(of, cache),
            None => key_values::begin(of, cache),
        }
    }

    fn context<'a>(&self, bank: &'a NormBank, slots: &'a RowIndex) -> NormContext<'a> {
        NormContext {
            bank,
            slots,
            kernels: self.kernels,
            activations: self.activations,
        }
    }

    /// `[rows, hidden]`: embeddings of tokens, and rows of `features` where the step says so.
    pub fn embed(&self, ready: &ReadyStep, features: Option<&Tensor>) -> Result<Tensor> {
        let step = &*ready.step;
        let device = self.embed_tokens.device();
        let mut tokens = Vec::with_capacity(step.len());
        for input in &step.inputs {
            if let RowInput::Token(token) = input {
                if *token as usize >= self.config.vocab_size {
                    candle_core::bail!("token {token} is beyond the vocabulary");
                }
                tokens.push(*token);
            }
        }
        // A chunk of nothing but an image has no token to look up, and devices have no empty tensors.
        let mut parts = Vec::with_capacity(2);
        if !tokens.is_empty() {
            let tokens = Tensor::new(tokens.as_slice(), device)?;
            let embedded = self.embed_tokens.index_select(&tokens, 0)?;
            parts.push(embedded.to_dtype(DType::F32)?);
        }
        if tokens.len() == step.len()
            && let Some(embedded) = parts.pop()
        {
            return Ok(embedded);
        }
        let Some(features) = features else {
            candle_core::bail!("the step has feature rows but no image features")
        };
        let n_features = features.dim(0)?;
        let mut next_token = 0;
        let mut order = Vec::with_capacity(step.len());
        for input in &step.inputs {
            match input {
                RowInput::Token(_) => {
                    order.push(next_token);
                    next_token += 1;
                }
                RowInput::Feature(row) if (*row as usize) < n_features => {
                    order.push(tokens.len() as u32 + row);
                }
                RowInput::Feature(row) => {
                    candle_core::bail!("image feature {row} is beyond the {n_features} given")
                }
            }
        }
        let order = Tensor::new(order.as_slice(), device)?;
        parts.push(features.to_dtype(DType::F32)?);
        Tensor::cat(&parts, 0)?.index_select(&order, 0)
    }
}

impl DecoderLayer {
    fn new(
        config: &DecoderConfig,
        index: usize,
        [input_layernorm, post_attention_layernorm]: [NormSite; 2],
        parameters: &dyn Parameters,
    ) -> std::result::Result<Self, ParameterError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q_width = config.num_attention_heads * config.head_dim;
        let linear = |name: &str, n_out: usize, n_in: usize, bias: bool| {
            let name = format!("{PREFIX}.layers.{index}.{name}");
            Linear::new(parameters, &name, &[n_out, n_in], bias)
        };
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        Ok(Self {
            index,
            input_layernorm,
            q_proj: linear("self_attn.q_proj", q_width, hidden, attention_bias)?,
            k_proj: linear(
                "self_attn.k_proj",
                config.kv_width(),
                hidden,
                attention_bias,
            )?,
            v_proj: linear(
                "self_attn.v_proj",
                config.kv_width(),
                hidden,
                attention_bias,
            )?,
            o_proj: linear("self_attn.o_proj", hidden, q_width, attention_bias)?,
            post_attention_layernorm,
            gate_proj: linear("mlp.gate_proj", inner, hidden, mlp_bias)?,
            up_proj: linear("mlp.up_proj", inner, hidden, mlp_bias)?,
            down_proj: linear("mlp.down_proj", hidden, inner, mlp_bias)?,
            hidden_act: config.hidden_act,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        (tensors, attention): (&StepTensors, &dyn Attend),
        table: &RopeTable,
        context: NormContext,
    ) -> Result<Tensor> {
        let kernels = context.kernels;
        let h = self.input_layernorm.forward(x, context)?;
        let q = rope(
            &self.q_proj.forward(&h)?,
            &tensors.positions,
            table,
            kernels,
        )?;
        let k = rope(
            &self.k_proj.forward(&h)?,
            &tensors.positions,
            table,
            kernels,
        )?;
        let v = self.v_proj.forward(&h)?;
        let h = attention.attend(self.index, [&q, &k, &v])?;
        let x = add_branch(x, &self.o_proj.forward(&h)?)?;
        let h = self.post_attention_layernorm.forward(&x, context)?;
        let (gate, up) = (self.gate_proj.forward(&h)?, self.up_proj.forward(&h)?);
        let h = gated(&gate, &up, self.hidden_act, kernels)?;
        add_branch(&x, &self.down_proj.forward(&h)?)
    }
}
