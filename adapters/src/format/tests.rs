//! A small base, files for it, and what is read back from them.

use super::*;
use crate::manifest::tests::example;
use crate::site::{Part, SiteKind};
use proptest::prelude::*;

mod hostile;

const TOWER: &str = "vision_tower.vision_model";
const DECODER: &str = "language_model.model";

/// A base of two used tower sites, one unused, one offset projector site, two decoder sites.
fn table() -> SiteTable {
    let site = |name: String, kind, width, part, used| Site {
        name,
        kind,
        width,
        part,
        used,
    };
    let layer_norm = SiteKind::LayerNorm;
    SiteTable::new(vec![
        site(
            format!("{TOWER}.pre_layrnorm"),
            layer_norm,
            2,
            Part::Vision,
            true,
        ),
        site(
            format!("{TOWER}.encoder.layers.0.layer_norm1"),
            layer_norm,
            2,
            Part::Vision,
            true,
        ),
        site(
            format!("{TOWER}.post_layernorm"),
            layer_norm,
            2,
            Part::Vision,
            false,
        ),
        site(
            "multi_modal_projector.mm_soft_emb_norm".into(),
            SiteKind::RmsNormOffset,
            2,
            Part::Projector,
            true,
        ),
        site(
            format!("{DECODER}.layers.0.input_layernorm"),
            SiteKind::RmsNorm,
            3,
            Part::Language,
            true,
        ),
        site(
            format!("{DECODER}.norm"),
            SiteKind::RmsNorm,
            3,
            Part::Language,
            true,
        ),
    ])
    .unwrap()
}

fn base_row() -> Vec<f32> {
    (0..table().row_len())
        .map(|idx| 1.0 + idx as f32 / 8.0)
        .collect()
}

fn base_digest() -> Digest {
    Digest::of(b"base")
}

fn read_it(bytes: &[u8]) -> Result<Adapter, AdapterError> {
    read(bytes, &table(), &base_row(), &base_digest())
}

/// The adapter of a scope that holds the base's own values.
fn stored(scope: Scope) -> StoredValues {
    AdapterValues::new(&table(), base_row(), scope)
        .unwrap()
        .stored(&table())
}

fn good(scope: Scope) -> Vec<u8> {
    write(&stored(scope), &example(base_digest(), scope)).unwrap()
}

/// One tensor of a file made by hand.
type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The good language adapter as entries, to be spoilt.
fn entries() -> Vec<Entry> {
    ["layers.0.input_layernorm", "norm"]
        .map(|site| {
            let name = format!("{DECODER}.{site}.weight");
            (name, Dtype::F32, vec![3], f32_bytes(&[1.0, 2.0, 3.0]))
        })
        .to_vec()
}

fn pack(entries: &[Entry]) -> Vec<u8> {
    let manifest = example(base_digest(), Scope::Language).to_json().unwrap();
    let views = entries.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = HashMap::from([("norma".into(), manifest), ("format".into(), "pt".into())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn what_is_written_is_read_back_and_written_the_same_again() {
    for (scope, n_sites, n_values) in [
        (Scope::All, 5, 4 + 4 + 2 + 3 + 3),
        (Scope::Vision, 2, 8),
        (Scope::Projector, 1, 2),
        (Scope::Language, 2, 6),
    ] {
        let file = good(scope);
        let adapter = read_it(&file).unwrap();
        assert_eq!(adapter.values.row(), base_row());
        assert_eq!((adapter.n_sites, adapter.n_values), (n_sites, n_values));
        assert_eq!(adapter.generation, Generation::of(&file));
        assert_eq!(adapter.manifest, example(base_digest(), scope));
        assert_eq!(
            write(&adapter.values.stored(&table()), &adapter.manifest).unwrap(),
            file
        );
        assert_eq!(
            read_header(&file[..file.len() - 4]).unwrap(),
            adapter.manifest
        );
    }
}

#[test]
fn offset_gains_are_stored_as_the_checkpoint_has_them() {
    let file = good(Scope::Projector);
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensor = tensors
        .tensor("multi_modal_projector.mm_soft_emb_norm.weight")
        .unwrap();
    let range = table().range(3).gain;
    let want: Vec<f32> = base_row()[range].iter().map(|gain| gain - 1.0).collect();
    assert_eq!(widened(&tensor).unwrap(), want);
}

#[test]
fn every_layout_and_float_type_is_read() {
    let want = [1.0, 2.0, 3.0];
    for (decoder, dtype) in [
        ("language_model.model", Dtype::F32),
        ("model.language_model", Dtype::F16),
        ("model", Dtype::BF16),
    ] {
        let data = match dtype {
            Dtype::F16 => want
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            Dtype::BF16 => want
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
            _ => f32_bytes(&want),
        };
        let entries = ["layers.0.input_layernorm", "norm"].map(|site| {
            (
                format!("{decoder}.{site}.weight"),
                dtype,
                vec![3],
                data.clone(),
            )
        });
        let adapter = read_it(&pack(&entries)).unwrap();
        assert_eq!(
            adapter.values.row()[table().range(5).gain],
            want,
            "{decoder}"
        );
    }
}

proptest! {
    #[test]
    fn any_values_come_back_bit_for_bit(
        scope in prop::sample::select(vec![Scope::All, Scope::Vision, Scope::Language]),
        seed in prop::collection::vec(-1e30f32..1e30, 18),
        logit in -1e30f32..1e30,
    ) {
        let mut row = base_row();
        for idx in table().selected(scope) {
            let range = table().range(idx);
            // An offset gain is exact between 0.5 and 2 only, see `AdapterValues::stored`.
            if table().sites()[idx].kind != SiteKind::RmsNormOffset {
                row[range.gain.clone()].copy_from_slice(&seed[range.gain]);
            }
            if let Some(bias) = range.bias {
                row[bias.clone()].copy_from_slice(&seed[bias]);
            }
        }
        let mut manifest = example(base_digest(), scope);
        manifest.self_test.top_logits[0] = vec![(5, logit), (6, logit)];
        let values = AdapterValues::new(&table(), row.clone(), scope).unwrap();
        let file = write(&values.stored(&table()), &manifest).unwrap();
        let adapter = read_it(&file).unwrap();
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(adapter.values.row()), bits(&row));
        prop_assert_eq!(adapter.manifest, manifest);
    }
}
