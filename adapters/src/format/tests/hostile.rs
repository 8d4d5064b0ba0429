//! Bytes made to do harm: each is refused, for a reason that names what is wrong.

use super::*;
use serde_json::{Value, json};

/// Puts a header, whatever it is, before some data.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// The header of a good file, as JSON, and its data.
fn split(file: &[u8]) -> (Value, Vec<u8>) {
    let size = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (
        serde_json::from_slice(&file[8..8 + size]).unwrap(),
        file[8 + size..].to_vec(),
    )
}

#[track_caller]
fn refused(bytes: &[u8], reason: &str, says: &str) {
    let err = read_it(bytes).expect_err("the file must be refused");
    let text = err.to_string();
    assert!(text.contains(says), "{text}");
    assert_eq!(err.reason(), reason, "{text}");
}

#[test]
fn truncation_anywhere_is_refused() {
    let file = good(Scope::All);
    for end in 0..file.len() {
        assert!(read_it(&file[..end]).is_err(), "cut at {end}");
    }
    let mut longer = file;
    longer.push(0);
    refused(&longer, "format", "not fully covered");
}

#[test]
fn a_header_above_the_cap_is_refused_by_its_length_alone() {
    refused(
        &(MAX_HEADER as u64 + 1).to_le_bytes(),
        "format",
        "the limit is 1048576",
    );
    refused(&u64::MAX.to_le_bytes(), "format", "the limit is 1048576");
    refused(
        &(MAX_HEADER as u64).to_le_bytes(),
        "format",
        "the header needs 1048584",
    );
    refused(&[], "format", "0 bytes");
    let manifest = Manifest {
        recipe: Value::String("x".repeat(MAX_HEADER)),
        ..example(base_digest(), Scope::All)
    };
    let err = write(&stored(Scope::All), &manifest).unwrap_err();
    assert!(
        matches!(err, AdapterError::Header(HeaderError::TooLarge { .. })),
        "{err}"
    );
}

#[test]
fn offsets_that_overlap_overflow_or_leave_a_gap_are_refused() {
    let (header, data) = split(&good(Scope::Language));
    let norm = format!("{DECODER}.norm.weight");
    for offsets in [
        json!([0, 12]),
        json!([6, 18]),
        json!([13, 25]),
        json!([24, 12]),
        json!([12, u64::MAX]),
    ] {
        let mut header = header.clone();
        header[&norm]["data_offsets"] = offsets.clone();
        refused(
            &with_header(&header.to_string(), &data),
            "format",
            "safetensors",
        );
    }
    for shape in [
        json!([4]),
        json!([u64::MAX, u64::MAX]),
        json!([-3]),
        json!([3.5]),
    ] {
        let mut header = header.clone();
        header[&norm]["shape"] = shape;
        refused(
            &with_header(&header.to_string(), &data),
            "format",
            "safetensors",
        );
    }
}

#[test]
fn headers_that_are_not_what_they_should_be_are_refused() {
    for header in [
        "",
        "{",
        "[]",
        "3",
        "{\"a\"",
        &"[".repeat(10_000),
        &"{\"a\":".repeat(10_000),
    ] {
        refused(&with_header(header, &[]), "format", "header");
    }
    refused(&with_header("{}", &[]), "format", "no `norma` manifest");
    refused(
        &with_header("{\"__metadata__\":{\"norma\":3}}", &[]),
        "format",
        "header",
    );
    refused(
        &with_header("{\"__metadata__\":[]}", &[]),
        "format",
        "header",
    );
    let twice = "{\"__metadata__\":{\"norma\":\"a\",\"norma\":\"b\"}}";
    refused(&with_header(twice, &[]), "format", "twice");
    refused(
        &with_header("{\"__metadata__\":{},\"__metadata__\":{}}", &[]),
        "format",
        "twice",
    );
    refused(
        &[3, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0xfd],
        "format",
        "header",
    );

    let (header, data) = split(&good(Scope::Language));
    let first = "{\"x\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},";
    let text = header.to_string();
    let doubled = format!("{first}{}{}", &first[1..], &text[1..]);
    refused(&with_header(&doubled, &data), "format", "twice");
}

#[test]
fn a_bad_manifest_is_refused_by_field() {
    let (header, data) = split(&good(Scope::Language));
    let with = |manifest: &str| {
        let mut header = header.clone();
        header["__metadata__"]["norma"] = manifest.into();
        with_header(&header.to_string(), &data)
    };
    refused(&with("{"), "manifest", "not JSON");
    refused(&with("{}"), "manifest", "`format_version` is missing");
    refused(
        &with("{\"format_version\":9}"),
        "manifest",
        "`format_version` is 9",
    );
    let manifest = example(base_digest(), Scope::Language).to_json().unwrap();
    refused(
        &with(&manifest.replace("probe/1", "probe/7")),
        "manifest",
        "self_test.generator",
    );
}

#[test]
fn another_base_and_an_empty_scope_are_refused() {
    let other = Digest::of(b"other");
    let file = write(&stored(Scope::All), &example(other, Scope::All)).unwrap();
    refused(&file, "base", &format!("`base_digest` is {other}"));
    let language: Vec<Site> = table()
        .sites()
        .iter()
        .filter(|site| site.part == Part::Language)
        .cloned()
        .collect();
    let small = SiteTable::new(language).unwrap();
    let row = vec![1.0; small.row_len()];
    let err = read(&good(Scope::Vision), &small, &row, &base_digest()).unwrap_err();
    assert!(
        matches!(
            err,
            AdapterError::EmptyScope {
                scope: Scope::Vision
            }
        ),
        "{err}"
    );
}

#[test]
fn the_site_set_is_exact_and_faults_are_named() {
    let add = |name: &str, width: usize| {
        let mut entries = entries();
        let data = f32_bytes(&vec![1.0; width]);
        entries.push((name.into(), Dtype::F32, vec![width], data));
        pack(&entries)
    };
    assert!(read_it(&pack(&entries())).is_ok());
    refused(
        &pack(&entries()[..1]),
        "site",
        "`language_model.model.norm.weight` is missing",
    );
    refused(&pack(&[]), "site", "is missing");
    refused(
        &add("language_model.model.layers.1.input_layernorm.weight", 3),
        "site",
        "site `language_model.model.layers.1.input_layernorm` does not exist",
    );
    refused(
        &add("nobody.knows.this", 3),
        "site",
        "`nobody.knows.this` is not a norm's",
    );
    refused(
        &add("transformer.ln_f.weight", 3),
        "site",
        "`transformer.ln_f.weight`",
    );
    refused(&add("", 3), "site", "``");
    refused(&add(&"x".repeat(5000), 3), "site", "xxx…`");
    refused(
        &add("vision_tower.post_layernorm.weight", 2),
        "site",
        "site `vision_tower.vision_model.post_layernorm` is never used",
    );
    refused(
        &add("vision_tower.pre_layrnorm.weight", 2),
        "scope",
        "site `vision_tower.vision_model.pre_layrnorm` lies outside the adapter's scope",
    );
    refused(
        &add("model.norm.weight", 3),
        "site",
        "`language_model.model.norm.weight` is in the",
    );
    refused(
        &add("model.norm.bias", 3),
        "site",
        "`language_model.model.norm.bias` is one too many",
    );

    let mut no_bias = stored(Scope::Vision);
    no_bias.first_entry().unwrap().get_mut().bias = None;
    let file = write(&no_bias, &example(base_digest(), Scope::Vision)).unwrap();
    refused(&file, "site", "layers.0.layer_norm1.bias` is missing");
    let (mut header, data) = split(&good(Scope::Vision));
    let weight = format!("{TOWER}.pre_layrnorm.weight");
    let gone = header
        .as_object_mut()
        .unwrap()
        .shift_remove(&weight)
        .unwrap();
    header[format!("{TOWER}.encoder.layers.0.layer_norm1.weight2")] = gone;
    refused(
        &with_header(&header.to_string(), &data),
        "site",
        "layer_norm1.weight2`",
    );
}

#[test]
fn wrong_shapes_types_and_values_are_refused_by_tensor() {
    let spoil = |spoil: &dyn Fn(&mut Entry)| {
        let mut entries = entries();
        spoil(&mut entries[1]);
        pack(&entries)
    };
    let norm = "`language_model.model.norm.weight`";
    let shape = |shape: &[usize]| {
        spoil(&|entry| {
            entry.2 = shape.to_vec();
            entry.3.resize(4 * shape.iter().product::<usize>(), 0);
        })
    };
    for wrong in [&[2][..], &[4], &[1, 3], &[3, 1], &[0], &[]] {
        refused(&shape(wrong), "shape", norm);
    }
    for (dtype, size) in [
        (Dtype::F64, 8),
        (Dtype::I32, 4),
        (Dtype::U8, 1),
        (Dtype::F8_E4M3, 1),
    ] {
        let file = spoil(&|entry| {
            entry.1 = dtype;
            entry.3.resize(3 * size, 0);
        });
        refused(&file, "dtype", norm);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let file = spoil(&|entry| entry.3 = f32_bytes(&[1.0, bad, 1.0]));
        refused(
            &file,
            "not_finite",
            "norm.weight` holds a value that is NaN or infinite, at index 1",
        );
    }
    let half = spoil(&|entry| {
        entry.1 = Dtype::F16;
        entry.3 = [1.0, f32::NAN, 1.0]
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect();
    });
    refused(&half, "not_finite", norm);
    let mut values = stored(Scope::Language);
    values.first_entry().unwrap().get_mut().weight[0] = f32::NAN;
    assert!(write(&values, &example(base_digest(), Scope::Language)).is_err());
}

proptest! {
    #[test]
    fn spoilt_bytes_never_panic_and_are_never_the_same_generation(
        flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..6),
        cut in 0usize..4000,
    ) {
        let file = good(Scope::All);
        let mut spoilt = file.clone();
        for (at, byte) in flips {
            let at = at % spoilt.len();
            spoilt[at] = byte;
        }
        spoilt.truncate(spoilt.len() - if cut % 3 == 0 { cut % spoilt.len() } else { 0 });
        if let Ok(adapter) = read_it(&spoilt) {
            prop_assert!(adapter.values.row().iter().all(|value| value.is_finite()));
            prop_assert_eq!(adapter.generation == Generation::of(&file), spoilt == file);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_it(&bytes).is_err());
    }
}
