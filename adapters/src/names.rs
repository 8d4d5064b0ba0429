//! One table of renames: the spellings of a base's tensors that are found on disk.
//!
//! In: a tensor's or a site's name in any known layout. Out: its canonical name (layout A), or
//! nothing where no layout spells a name so. Knows no shapes and no values.
//!
//! | | decoder | head | tower | projector |
//! |---|---|---|---|---|
//! | A | `language_model.model.` | `language_model.lm_head.` | `vision_tower.vision_model.` | `multi_modal_projector.` |
//! | B | `model.language_model.` | `lm_head.` | `model.vision_tower.[vision_model.]` | `model.multi_modal_projector.` |
//! | C | as A | as A | `vision_tower.` | as A |
//! | D | `model.` | `lm_head.` | `model.vision_tower.vision_tower.[vision_model.]` | `model.mm_projector.{0,2}.` |

const DECODER: &str = "language_model.model";
const HEAD: &str = "language_model.lm_head";
const TOWER: &str = "vision_tower.vision_model";
const PROJECTOR: &str = "multi_modal_projector";

/// What may follow a decoder's prefix. Layout D's prefix is a bare `model`, which would otherwise
/// claim every other name that starts so.
const DECODER_HEADS: [&str; 3] = ["layers", "norm", "embed_tokens"];

/// (prefix on disk, canonical prefix). A prefix ends where a name's component ends, and the first
/// line that fits decides, so the longer spellings come first.
const PREFIXES: [(&str, &str); 14] = [
    ("language_model.model", DECODER),
    ("model.language_model", DECODER),
    ("language_model.lm_head", HEAD),
    ("lm_head", HEAD),
    ("model.vision_tower.vision_tower.vision_model", TOWER),
    ("model.vision_tower.vision_tower", TOWER),
    ("model.vision_tower.vision_model", TOWER),
    ("model.vision_tower", TOWER),
    ("vision_tower.vision_model", TOWER),
    ("vision_tower", TOWER),
    ("model.multi_modal_projector", PROJECTOR),
    ("multi_modal_projector", PROJECTOR),
    ("model.mm_projector", PROJECTOR),
    ("model", DECODER),
];

/// The canonical spelling of a tensor's or a site's name, or `None` where no layout has such a
/// name. A canonical name is its own canonical spelling.
pub fn canonical(name: &str) -> Option<String> {
    let (from, to, tail) = PREFIXES.iter().find_map(|&(from, to)| {
        let rest = name.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('.')).then_some((from, to, rest))
    })?;
    let tail = tail.strip_prefix('.').unwrap_or("");
    let (first, rest) = tail.split_once('.').unwrap_or((tail, ""));
    let first = match to {
        HEAD => return Some(join(to, tail)),
        DECODER if !DECODER_HEADS.contains(&first) => return None,
        PROJECTOR if from == "model.mm_projector" => match first {
            "0" => "linear_1",
            "2" => "linear_2",
            // A projector of the type `linear` is one layer and has no index.
            "weight" | "bias" if rest.is_empty() => {
                return Some(join(&join(to, "linear_1"), first));
            }
            _ => return None,
        },
        _ if first.is_empty() => return None,
        _ => first,
    };
    Some(join(&join(to, first), rest))
}

fn join(head: &str, tail: &str) -> String {
    if tail.is_empty() {
        head.to_owned()
    } else {
        format!("{head}.{tail}")
    }
}

const PEFT_HEAD: &str = "base_model.model.";
const PEFT_LEAF: &str = ".ln_tuning_layers.";

/// The canonical tensor name behind a tensor of a PEFT LN-tuning file
/// (`base_model.model.<site>.ln_tuning_layers.weight` or `.bias`, the site in any layout), or
/// `None` where the name is not of that form.
pub fn from_peft(name: &str) -> Option<String> {
    let (site, leaf) = name.strip_prefix(PEFT_HEAD)?.rsplit_once(PEFT_LEAF)?;
    if !matches!(leaf, "weight" | "bias") {
        return None;
    }
    Some(join(&canonical(site)?, leaf))
}

/// The name under which PEFT looks for a tensor (`<site>.weight` or `<site>.bias`, canonical) of a
/// LLaVA held in memory by transformers 5, whose modules are named as in layout B with no
/// `vision_model` (measured with peft 0.21.2 on transformers 5.23).
/// `None` where the name is not canonical or ends otherwise.
pub fn to_peft(name: &str) -> Option<String> {
    let (site, leaf) = name.rsplit_once('.')?;
    if !matches!(leaf, "weight" | "bias") {
        return None;
    }
    let under = |prefix: &str| Some(site.strip_prefix(prefix)?.strip_prefix('.')?.to_owned());
    let path = if let Some(rest) = under(DECODER) {
        format!("model.language_model.{rest}")
    } else if let Some(rest) = under(TOWER) {
        format!("model.vision_tower.{rest}")
    } else {
        format!("model.multi_modal_projector.{}", under(PROJECTOR)?)
    };
    Some(format!("{PEFT_HEAD}{path}{PEFT_LEAF}{leaf}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const LAYER: [&str; 9] = [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ];
    const TOWER_TAILS: [&str; 10] = [
        "embeddings.class_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        "pre_layrnorm.weight",
        "pre_layrnorm.bias",
        "encoder.layers.0.layer_norm1.weight",
        "encoder.layers.11.layer_norm2.bias",
        "encoder.layers.11.self_attn.out_proj.weight",
        "encoder.layers.11.mlp.fc1.bias",
        "post_layernorm.weight",
    ];

    struct Spelling {
        decoder: &'static str,
        head: &'static str,
        tower: &'static str,
        projector: [&'static str; 2],
    }

    impl Spelling {
        fn names(&self) -> Vec<String> {
            let mut names = vec![
                format!("{}embed_tokens.weight", self.decoder),
                format!("{}norm.weight", self.decoder),
                format!("{}weight", self.head),
            ];
            for layer_idx in [0, 1, 31] {
                let head = format!("{}layers.{layer_idx}", self.decoder);
                names.extend(LAYER.iter().map(|tail| format!("{head}.{tail}")));
            }
            names.extend(
                TOWER_TAILS
                    .iter()
                    .map(|tail| format!("{}{tail}", self.tower)),
            );
            for layer in self.projector {
                names.push(format!("{layer}weight"));
                names.push(format!("{layer}bias"));
            }
            names
        }
    }

    const A: Spelling = Spelling {
        decoder: "language_model.model.",
        head: "language_model.lm_head.",
        tower: "vision_tower.vision_model.",
        projector: [
            "multi_modal_projector.linear_1.",
            "multi_modal_projector.linear_2.",
        ],
    };
    const B: Spelling = Spelling {
        decoder: "model.language_model.",
        head: "lm_head.",
        tower: "model.vision_tower.vision_model.",
        projector: [
            "model.multi_modal_projector.linear_1.",
            "model.multi_modal_projector.linear_2.",
        ],
    };
    const B_BARE_TOWER: Spelling = Spelling {
        tower: "model.vision_tower.",
        ..B
    };
    const C: Spelling = Spelling {
        tower: "vision_tower.",
        ..A
    };
    const D: Spelling = Spelling {
        decoder: "model.",
        head: "lm_head.",
        tower: "model.vision_tower.vision_tower.vision_model.",
        projector: ["model.mm_projector.0.", "model.mm_projector.2."],
    };

    #[test]
    fn every_layout_maps_to_the_same_set_of_names() {
        let want = A.names();
        assert_eq!(want.iter().collect::<BTreeSet<_>>().len(), want.len());
        for layout in [A, B, B_BARE_TOWER, C, D] {
            let got: Vec<String> = layout
                .names()
                .iter()
                .map(|name| canonical(name).unwrap_or_else(|| panic!("{name} has no layout")))
                .collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn sites_are_renamed_like_their_tensors() {
        for (name, want) in [
            ("model.norm", "language_model.model.norm"),
            ("model.language_model.norm", "language_model.model.norm"),
            (
                "vision_tower.pre_layrnorm",
                "vision_tower.vision_model.pre_layrnorm",
            ),
            (
                "model.layers.7.input_layernorm",
                "language_model.model.layers.7.input_layernorm",
            ),
            (
                "model.mm_projector.weight",
                "multi_modal_projector.linear_1.weight",
            ),
        ] {
            assert_eq!(canonical(name).as_deref(), Some(want));
        }
    }

    #[test]
    fn names_of_no_layout_are_refused() {
        for name in [
            "",
            "model",
            "model.",
            "weight",
            "model.normal.weight",
            "model.image_newline",
            "model.mm_projector.1.weight",
            "model.mm_projector.4.weight",
            "model.mm_projector.weight.more",
            "lm_headless.weight",
            "language_model.weight",
            "language_model.layers.0.input_layernorm.weight",
            "vision_tower",
            "vision_towers.encoder.layers.0.layer_norm1.weight",
            "transformer.h.0.ln_1.weight",
        ] {
            assert_eq!(canonical(name), None, "{name}");
        }
    }

    #[test]
    fn peft_names_go_both_ways() {
        let peft = "base_model.model.model.language_model.layers.3.input_layernorm\
                    .ln_tuning_layers.weight";
        let name = "language_model.model.layers.3.input_layernorm.weight";
        assert_eq!(from_peft(peft).as_deref(), Some(name));
        assert_eq!(to_peft(name).as_deref(), Some(peft));
        for name in A.names().iter().filter(|name| name.contains("norm")) {
            let peft = to_peft(name).unwrap();
            assert_eq!(from_peft(&peft).as_ref(), Some(name));
        }
        // A decoder alone, as PEFT names it inside a checkpoint of layout A.
        let inner = "base_model.model.language_model.model.norm.ln_tuning_layers.weight";
        assert_eq!(
            from_peft(inner).as_deref(),
            Some("language_model.model.norm.weight")
        );
        for bad in [
            "base_model.model.model.norm.weight",
            "model.norm.ln_tuning_layers.weight",
            "",
        ] {
            assert_eq!(from_peft(bad), None, "{bad}");
        }
        for bad in [
            "language_model.model.norm",
            "language_model.lm_head.weight",
            "weight",
            "",
        ] {
            assert_eq!(to_peft(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_name_is_its_own_spelling(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "model", "language_model", "vision_tower", "vision_model", "mm_projector",
                    "multi_modal_projector", "lm_head", "layers", "norm", "0", "2", "weight", "",
                ]),
                0..7,
            )
        ) {
            if let Some(once) = canonical(&parts.join(".")) {
                prop_assert_eq!(canonical(&once), Some(once));
            }
        }
    }
}
