//! Learned keys and values that every sequence sees before its own: prefix tuning.
//!
//! In: a step as its maker built it, and each layer's queries, keys and values. Out: the step moved
//! behind the prefix, and attention with the prefix in front. Neither the step's maker nor the KV cache
//! knows of it.
//!
//! Reference: X. L. Li, P. Liang, arXiv:2101.00190. As in PEFT, keys are learned as attention meets
//! them (already rotated), and the positions of a sequence start behind them.

use candle_core::{Result, Tensor, bail};

use super::key_values::{Attend, KeyValues, StepOfHeads};
use super::kv_cache::KvCache;
use super::ops::attention::attention;
use super::parameters::{ParameterError, Parameters};
use super::step::Step;

/// The prefix of all decoder layers.
#[derive(Clone, Debug)]
pub struct Prefix {
    tokens: usize,
    /// Keys and values, `[tokens, kv_width]`, of each layer.
    layers: Vec<(Tensor, Tensor)>,
}

impl Prefix {
    /// Asks for the prefixes of the attentions `names`, if there are any.
    pub fn read(
        parameters: &dyn Parameters,
        names: impl Iterator<Item = String>,
        kv_width: usize,
    ) -> std::result::Result<Option<Self>, ParameterError> {
        let tokens = parameters.prefix_tokens();
        if tokens == 0 {
            return Ok(None);
        }
        let read = |name: String| {
            let tensor = |what| parameters.tensor(&format!("{name}.{what}"), &[tokens, kv_width]);
            Ok((tensor("prefix_keys")?, tensor("prefix_values")?))
        };
        let layers = names.map(read).collect::<std::result::Result<_, _>>()?;
        Ok(Some(Self { tokens, layers }))
    }

    /// Positions that it takes from every sequence.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The same step with all positions and key rows further on, and every segment seeing the prefix
    /// before its own keys.
    pub fn behind(&self, step: &Step) -> Step {
        let mut step = step.clone();
        for position in &mut step.positions {
            *position += self.tokens as u32;
        }
        for segment in &mut step.segments {
            for span in &mut segment.keys {
                *span = span.start + self.tokens..span.end + self.tokens;
            }
            segment.keys.insert(0, 0..self.tokens);
        }
        step
    }

    /// Attention of a step that was moved [`Self::behind`] the prefix. The cache must keep its rows in one
    /// piece.
    pub fn begin<'a>(
        &'a self,
        of: StepOfHeads<'a>,
        cache: Option<&'a dyn KeyValues>,
    ) -> Result<Box<dyn Attend + 'a>> {
        let cache = match cache {
            Some(cache) if of.step.cache_rows.is_some() => match cache.as_rows() {
                Some(rows) => Some(rows),
                None => bail!("a learned prefix needs a cache of rows in the CPU's memory"),
            },
            _ => None,
        };
        Ok(Box::new(Prefixed {
            of,
            cache,
            layers: &self.layers,
        }))
    }
}

struct Prefixed<'a> {
    of: StepOfHeads<'a>,
    cache: Option<&'a KvCache>,
    layers: &'a [(Tensor, Tensor)],
}

impl Attend for Prefixed<'_> {
    fn attend(&self, layer: usize, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let Some((keys, values)) = self.layers.get(layer) else {
            bail!("no prefix for layer {layer}")
        };
        let StepOfHeads {
            step,
            layout,
            heads,
            kernels,
        } = self.of;
        let (k, v) = step.keys_and_values(layer, (k.clone(), v.clone()), self.cache)?;
        let join = |prefix: &Tensor, own: &Tensor| {
            Tensor::cat(&[&prefix.to_dtype(own.dtype())?, own], 0) // [tokens + rows, kv_width]
        };
        attention(
            (q, &join(keys, &k)?, &join(values, &v)?),
            heads,
            layout,
            kernels,
        )
    }
}
