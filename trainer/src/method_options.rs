//! The command line's words for methods. In: options. Out: a recipe with them in place of its own.

use anyhow::{Result, ensure};
use norma_adapters::Scope;
use norma_trainer::methods::{LayerNorm, Lora, Method, NormValues, Prefix};
use norma_trainer::tune::TuneRecipe;

use crate::word;

/// What learns, in place of what the recipe says.
#[derive(clap::Args)]
pub struct MethodOptions {
    /// What learns. Only `layernorm` makes an adapter that the server takes; the others write a file for
    /// `eval --trained`.
    #[arg(long)]
    method: Option<Word>,
    /// Where: `all`, `vision`, `projector` or `language`.
    #[arg(long)]
    scope: Option<Scope>,
    /// `layernorm`: a regular expression for the names of sites.
    #[arg(long, value_name = "REGEX")]
    sites: Option<String>,
    /// `layernorm`: `gain`, `bias` or `both`.
    #[arg(long, value_parser = word::<NormValues>)]
    values: Option<NormValues>,
    /// `lora`: the rank.
    #[arg(long)]
    rank: Option<usize>,
    /// `lora`: the path is multiplied by alpha / rank.
    #[arg(long)]
    alpha: Option<f64>,
    /// `lora`: a regular expression for the names of linear maps.
    #[arg(long, value_name = "REGEX")]
    targets: Option<String>,
    /// `prefix`: its length.
    #[arg(long)]
    tokens: Option<usize>,
    /// Keep only the inputs of layers for the way back, and compute the rest again: less memory for more
    /// time, the same values.
    #[arg(long)]
    checkpoint_layers: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Word {
    Layernorm,
    Ffn,
    Attention,
    Full,
    Bias,
    Lora,
    Ia3,
    Prefix,
}

impl Word {
    fn method(self) -> Method {
        match self {
            Self::Layernorm => Method::LayerNorm(LayerNorm::default()),
            Self::Ffn => Method::Ffn,
            Self::Attention => Method::Attention,
            Self::Full => Method::Full,
            Self::Bias => Method::Bias,
            Self::Lora => Method::Lora(Lora::default()),
            Self::Ia3 => Method::Ia3,
            Self::Prefix => Method::Prefix(Prefix::default()),
        }
    }
}

impl MethodOptions {
    /// Puts the options into the recipe.
    pub fn apply(&self, recipe: &mut TuneRecipe) -> Result<()> {
        if let Some(word) = self.method {
            recipe.method = word.method();
        }
        if let Some(scope) = self.scope {
            recipe.scope = scope;
        }
        recipe.checkpoint_layers |= self.checkpoint_layers;
        let name = recipe.method.name();
        for (option, method, given) in [
            ("sites", "layernorm", self.sites.is_some()),
            ("values", "layernorm", self.values.is_some()),
            ("rank", "lora", self.rank.is_some()),
            ("alpha", "lora", self.alpha.is_some()),
            ("targets", "lora", self.targets.is_some()),
            ("tokens", "prefix", self.tokens.is_some()),
        ] {
            ensure!(
                !given || method == name,
                "--{option} belongs to {method}, the method is {name}"
            );
        }
        match &mut recipe.method {
            Method::LayerNorm(options) => {
                options.sites = self.sites.clone().or(options.sites.take());
                options.values = self.values.unwrap_or(options.values);
            }
            Method::Lora(options) => {
                options.rank = self.rank.unwrap_or(options.rank);
                options.alpha = self.alpha.unwrap_or(options.alpha);
                if let Some(targets) = &self.targets {
                    options.targets.clone_from(targets);
                }
            }
            Method::Prefix(options) => options.tokens = self.tokens.unwrap_or(options.tokens),
            _ => {}
        }
        Ok(())
    }
}
