//! CLIP's vision transformer: pixels in, the hidden states of the selected layers out.
//!
//! Reference: `CLIPVisionModel` of transformers 5.23 (`models/clip/modeling_clip.py`).

use candle_core::{Result, Tensor};

use super::config::VisionConfig;
use super::linear::Linear;
use super::norm_site::{NormContext, NormSite, SiteList, vision_layer_norm};
use super::ops::activation::{Activation, activate};
use super::ops::attention::{AttentionLayout, Heads, attention};
use super::ops::{Kernels, add_branch};
use super::parameters::{ParameterError, Parameters};

const PREFIX: &str = "vision_tower.vision_model";

/// The tower up to the last selected layer.
#[derive(Clone, Debug)]
pub struct VisionTower {
    config: VisionConfig,
    patch_embedding: Linear,
    class_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: NormSite,
    layers: Vec<EncoderLayer>,
}

/// Images on their way through the tower.
#[derive(Debug)]
pub struct TowerPass {
    n_images: usize,
    layout: AttentionLayout,
    /// The hidden states before the first layer and after each one done, `[n * rows, width]`.
    states: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct EncoderLayer {
    layer_norm1: NormSite,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: NormSite,
    fc1: Linear,
    fc2: Linear,
    heads: Heads,
    hidden_act: Activation,
}

impl VisionTower {
    /// Asks for the parameters of the layers that are read, and declares the sites of all layers:
    /// those above the last selected one, and `post_layernorm`, as unused.
    pub fn new(
        config: &VisionConfig,
        parameters: &dyn Parameters,
        sites: &mut SiteList,
    ) -> std::result::Result<Self, ParameterError> {
        let width = config.hidden_size;
        let (patch, rows) = (config.patch_size, config.n_patches() + 1);
        let mut declare = |name: String, used: bool| {
            sites.declare(
                vision_layer_norm(format!("{PREFIX}.{name}"), width, used),
                config.layer_norm_eps,
            )
        };
        let pre_layrnorm = declare("pre_layrnorm".into(), true);
        let mut layers = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let used = layer < config.used_layers();
            let norms =
                [1, 2].map(|n| declare(format!("encoder.layers.{layer}.layer_norm{n}"), used));
            if used {
                layers.push(EncoderLayer::new(config, layer, norms, parameters)?);
            }
        }
        declare("post_layernorm".into(), false);
        let embedding = |name: &str| format!("{PREFIX}.embeddings.{name}");
        Ok(Self {
            config: config.clone(),
            patch_embedding: Linear::new(
                parameters,
                &embedding("patch_embedding"),
                &[width, 3, patch, patch],
                false,
            )?,
            class_embedding: parameters.tensor(&embedding("class_embedding"), &[width])?,
            position_embedding: parameters
                .tensor(&embedding("position_embedding.weight"), &[rows, width])?,
            pre_layrnorm,
            layers,
        })
    }

    /// The selected hidden states of `n` images. `pixels`: `[n, 3, size, size]`; `context.slots`: one a
    /// row, `n * (patches + 1)` of them. Returns `[n * image_tokens, width * selected layers]`.
    pub fn forward(&self, pixels: &Tensor, context: NormContext) -> Result<Tensor> {
        let mut pass = self.begin(pixels, context)?;
        self.go_on(&mut pass, usize::MAX, context)?;
        self.selected(&pass)
    }

    /// Embeds the images: the layers are still to come. Arguments as for [`Self::forward`].
    pub fn begin(&self, pixels: &Tensor, context: NormContext) -> Result<TowerPass> {
        let (n_images, _, _, _) = pixels.dims4()?;
        Ok(TowerPass {
            n_images,
            layout: self.layout(n_images)?,
            states: vec![self.first(pixels, context)?],
        })
    }

    /// Which rows of `n` images see each other.
    pub fn layout(&self, n: usize) -> Result<AttentionLayout> {
        AttentionLayout::blocks(n, self.config.n_patches() + 1)
    }

    /// The stream before the first layer, `[n * rows, width]`. Arguments as for [`Self::forward`].
    pub fn first(&self, pixels: &Tensor, context: NormContext) -> Result<Tensor> {
        self.pre_layrnorm.normalise(&self.embed(pixels)?, context)
    }

    /// The number of layers up to the last selected one.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// One layer: the stream before it and after it.
    pub fn layer(
        &self,
        index: usize,
        x: &Tensor,
        layout: &AttentionLayout,
        context: NormContext,
    ) -> Result<Tensor> {
        self.layers[index].forward(x, layout, context)
    }

    /// Which states are read, counted from the one before the first layer.
    pub fn selection(&self) -> &[usize] {
        &self.config.feature_layers
    }

    /// At most so many layers more; whether all are done.
    pub fn go_on(
        &self,
        pass: &mut TowerPass,
        n_layers: usize,
        context: NormContext,
    ) -> Result<bool> {
        let done = pass.states.len() - 1;
        for (layer, block) in self.layers.iter().enumerate().skip(done).take(n_layers) {
            let x = block.forward(&pass.states[layer], &pass.layout, context)?;
            // What nobody selects need not be kept once it has been read.
            if !self.config.feature_layers.contains(&layer) {
                pass.states[layer] = Tensor::zeros((), x.dtype(), x.device())?;
            }
            pass.states.push(x);
        }
        Ok(pass.states.len() > self.layers.len())
    }

    /// The selected hidden states, once all layers are done.
    pub fn selected(&self, pass: &TowerPass) -> Result<Tensor> {
        let states = self.selection().iter().map(|layer| &pass.states[*layer]);
        self.join(states, pass.n_images)
    }

    /// The wanted rows of the states in [`Self::selection`], side by side.
    pub fn join<'a>(
        &self,
        states: impl Iterator<Item = &'a Tensor>,
        n_images: usize,
    ) -> Result<Tensor> {
        let selected: Vec<Tensor> = states
            .map(|state| self.select_rows(state, n_images))
            .collect::<Result<_>>()?;
        match selected.as_slice() {
            [single] => Ok(single.clone()),
            several => Tensor::cat(several, 1),
        }
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (n, channels, height, _) = pixels.dims4()?;
        let (patch, width) = (self.config.patch_size, self.config.hidden_size);
        let grid = height / patch;
        let patches = pixels
            .reshape(&[n, channels, grid, patch, grid, patch][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((n * grid * grid, channels * patch * patch))?;
        let patches = self
            .patch_embedding
            .forward(&patches)?
            .to_dtype(self.position_embedding.dtype())?
            .reshape((n, grid * grid, width))?;
        let class = self
            .class_embedding
            .reshape((1, 1, width))?
            .broadcast_as((n, 1, width))?;
        Tensor::cat(&[&class, &patches], 1)?
            .broadcast_add(&self.position_embedding)?
            .reshape((n * (grid * grid + 1), width)) // [n * rows, width]
    }

    fn select_rows(&self, state: &Tensor, n: usize) -> Result<Tensor> {
        if self.config.keeps_class_token {
            return Ok(state.clone());
        }
        let (patches, width) = (self.config.n_patches(), self.config.hidden_size);
        state
            .reshape((n, patches + 1, width))?
            .narrow(1, 1, patches)?
            .contiguous()?
            .reshape((n * patches, width))
    }
}

impl EncoderLayer {
    fn new(
        config: &VisionConfig,
        layer: usize,
        [layer_norm1, layer_norm2]: [NormSite; 2],
        parameters: &dyn Parameters,
    ) -> std::result::Result<Self, ParameterError> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, n_out: usize, n_in: usize| {
            let name = format!("{PREFIX}.encoder.layers.{layer}.{name}");
            Linear::new(parameters, &name, &[n_out, n_in], true)
        };
        let n_heads = config.num_attention_heads;
        Ok(Self {
            layer_norm1,
            q_proj: linear("self_attn.q_proj", width, width)?,
            k_proj: linear("self_attn.k_proj", width, width)?,
            v_proj: linear("self_attn.v_proj", width, width)?,
            out_proj: linear("self_attn.out_proj", width, width)?,
            layer_norm2,
            fc1: linear("mlp.fc1", inner, width)?,
            fc2: linear("mlp.fc2", width, inner)?,
            heads: Heads::new(n_heads, n_heads, width / n_heads),
            hidden_act: config.hidden_act,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        layout: &AttentionLayout,
        context: NormContext,
    ) -> Result<Tensor> {
        let kernels: Kernels = context.kernels;
        let h = self.layer_norm1.forward(x, context)?;
        let (q, k, v) = (
            self.q_proj.forward(&h)?,
            self.k_proj.forward(&h)?,
            self.v_proj.forward(&h)?,
        );
        let h = attention((&q, &k, &v), self.heads, layout, kernels)?;
        let x = add_branch(x, &self.out_proj.forward(&h)?)?;
        let h = self.layer_norm2.forward(&x, context)?;
        let h = activate(&self.fc1.forward(&h)?, self.hidden_act, kernels)?;
        add_branch(&x, &self.fc2.forward(&h)?)
    }
}
