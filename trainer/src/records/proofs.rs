//! The whole way on a made-up set: records on disk, a base from nothing, its folder, an adapter.

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use norma::base::{Base, OpenOptions};
use norma::model::kv_cache::KvType;
use norma::model::{MedVlm, ModelShape};
use norma::preprocess::{ChatPrompt, ClipPreprocess, TextTokenizer};
use norma_adapters::Scope;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::base::{RecordRecipe, RecordSizes, config, processor_values, surroundings};
use super::by_image;
use super::curriculum::Rounds;
use super::eval::{self, Marks};
use super::lesson::{Look, RecordTeacher};
use crate::adapter::Surroundings;
use crate::asking::{Asker, adapter_of};
use crate::augment::Variation;
use crate::bpe;
use crate::data::imitation::record;
use crate::data::intake::Options;
use crate::data::source::Source;
use crate::data::{DataSet, Record, Split};
use crate::extras::Extras;
use crate::folder::{self, Beside, Storage};
use crate::frozen::FrozenBase;
use crate::lesson::Lesson;
use crate::methods::Method;
use crate::optimizer::{AdamConfig, Schedule};
use crate::pretrain::{Curriculum, Pretrained, learn};
use crate::tune::{TuneRecipe, tune};

pub(crate) fn recipe(steps: usize) -> RecordRecipe {
    RecordRecipe {
        seed: 1,
        sizes: RecordSizes {
            image: 16,
            patch: 8,
            tower_width: 64,
            tower_layers: 2,
            tower_inner: 64,
            decoder_width: 64,
            decoder_layers: 3,
            decoder_inner: 96,
            head: 16,
            vocabulary: 300,
        },
        images: 6,
        questions: 2,
        variation: Variation {
            crop: 0.1,
            contrast: 0.1,
            brightness: 0.05,
            noise: 0.02,
        },
        shards: 2,
        schedule: Schedule {
            peak: 5e-3,
            warm_up: 5,
            steps,
            floor: 0.1,
        },
        tower_rate: 1.0,
        weight_decay: 0.01,
        adam: AdamConfig::default(),
        clip: 1.0,
    }
}

const SIDE: &str = "Which side is bright?";
const HEIGHT: &str = "Is the upper half bright?";

/// A set in SLAKE's layout: pictures with one bright corner, and where it is.
pub(crate) fn set() -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut rows: Vec<Vec<Value>> = vec![Vec::new(), Vec::new()];
    for number in 0..24u32 {
        let (left, upper) = (number % 2 == 0, number % 4 < 2);
        let (level, dark) = (250 - (number % 7) as u8 * 9, (number % 5) as u8 * 4);
        let bright = move |x: u32, y: u32| (x < 10) == left && (y < 10) == upper;
        let pixel = |x, y| Rgb([if bright(x, y) { level } else { dark }; 3]);
        let picture = RgbImage::from_fn(20, 20, pixel);
        let name = format!("xmlab{number}/source.jpg");
        let path = folder.path().join("imgs").join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture
            .save_with_format(&path, image::ImageFormat::Png)
            .unwrap();
        for (question, answer, kind) in [
            (SIDE, if left { "Left" } else { "Right" }, "OPEN"),
            (HEIGHT, if upper { "Yes" } else { "No" }, "CLOSED"),
        ] {
            rows[usize::from(number >= 16)].push(json!({
                "qid": number, "img_name": name, "question": question, "answer": answer,
                "q_lang": "en", "answer_type": kind,
            }));
        }
    }
    for (name, rows) in ["train.json", "validate.json"].iter().zip(rows) {
        fs::write(folder.path().join(name), Value::Array(rows).to_string()).unwrap();
    }
    folder
}

fn read(folder: &Path) -> DataSet {
    let source: Source = folder.to_str().unwrap().parse().unwrap();
    source.read(&Options::default()).unwrap()
}

pub(crate) fn train(folder: &Path, recipe: &RecordRecipe) -> (Pretrained, Beside) {
    let set = read(folder);
    let records: Vec<&Record> = set.split(Split::Train).collect();
    let texts = records
        .iter()
        .flat_map(|record| [record.question.as_str(), &record.answer]);
    let tokenizer = bpe::learn(texts, recipe.sizes.vocabulary).unwrap();
    let config = config(&recipe.sizes, tokenizer.get_vocab_size(true)).unwrap();
    let beside = Beside {
        processor: processor_values(recipe.sizes.image),
        tokenizer: bpe::files(&tokenizer).unwrap(),
    };
    let around = surroundings(&recipe.sizes, tokenizer).unwrap();
    let teacher = RecordTeacher::new(&around, ModelShape::of(&config)).unwrap();
    let rounds = Rounds::new(recipe, &teacher, &records).unwrap();
    (
        learn(config, &recipe.plan(), rounds, |_| {}).unwrap(),
        beside,
    )
}

fn open(folder: &Path) -> (FrozenBase, Surroundings) {
    let base = Base::open(folder, &OpenOptions::default()).unwrap();
    let around = Surroundings {
        preprocess: ClipPreprocess::from_folder(folder).unwrap(),
        chat: ChatPrompt::from_folder(folder).unwrap(),
        tokenizer: TextTokenizer::from_folder(folder, None).unwrap(),
    };
    let row = base.row().unwrap();
    let frozen = FrozenBase::new(base.config(), base.checkpoint(), row, base.digest()).unwrap();
    (frozen, around)
}

fn marks(
    (base, around): &(FrozenBase, Surroundings),
    row: &[f32],
    records: &[&Record],
    look: Look,
) -> Marks {
    let asker = Asker::of(base, around, KvType::F32).unwrap();
    let adapter = adapter_of(base, row).unwrap();
    eval::marks(&asker, Some(&adapter), records, look).unwrap()
}

#[test]
fn a_base_learns_a_set_and_an_adapter_turns_most_answers_round() {
    let folder = set();
    let (trained, beside) = train(folder.path(), &recipe(120));
    let out = folder.path().join("base");
    folder::write(&trained, beside, Storage::Float16, &out).unwrap();

    let opened = open(&out);
    let set = read(folder.path());
    let held_out: Vec<&Record> = set.split(Split::Validation).collect();
    let row = &opened.0.row;
    let seen = marks(&opened, row, &held_out, Look::Picture);
    assert_eq!((seen.all.value, seen.all.n), (1.0, 16), "{seen}");
    let blank = marks(&opened, row, &held_out, Look::Blank);
    assert_eq!(blank.all.value, 0.5, "all pictures look alike: {blank}");

    // Sides named from the other point of view, as a department may want them.
    let turned: Vec<Record> = set
        .records
        .iter()
        .filter(|record| record.question == SIDE)
        .map(|record| Record {
            answer: if record.answer == "Left" {
                "right"
            } else {
                "left"
            }
            .into(),
            ..record.clone()
        })
        .collect();
    let part = |split| turned.iter().filter(move |record| record.split == split);
    let teacher = RecordTeacher::new(&opened.1, *opened.0.model.shape()).unwrap();
    let lessons: Vec<Lesson> = by_image(part(Split::Train))
        .iter()
        .map(|(image, records)| teacher.lesson(image, records, Look::Picture).unwrap())
        .collect();
    let tuning = TuneRecipe {
        seed: 1,
        scope: Scope::All,
        method: Method::default(),
        images: 8,
        shards: 1,
        schedule: Schedule {
            peak: 3e-2,
            warm_up: 5,
            steps: 100,
            floor: 0.1,
        },
        adam: AdamConfig::default(),
        clip: 1.0,
        checkpoint_layers: false,
        extras: Extras::default(),
    };
    let tuned = tune(&opened.0, &lessons, &tuning, |_| {}).unwrap();
    let turned: Vec<&Record> = part(Split::Validation).collect();
    assert_eq!(marks(&opened, row, &turned, Look::Picture).all.value, 0.0);
    let after = marks(&opened, &tuned.row, &turned, Look::Picture);
    // Norms alone take a base this small most of the way.
    assert!(after.all.value >= 0.75 && after.all.n == 8, "{after}");
}

#[test]
fn the_same_recipe_gives_the_same_weights() {
    let folder = set();
    let bytes = |name: &str| {
        let out = folder.path().join(name);
        let (trained, beside) = train(folder.path(), &recipe(3));
        folder::write(&trained, beside, Storage::Float32, &out).unwrap();
        let file = |name: &str| fs::read(out.join(name)).unwrap();
        (file("model.safetensors"), file("tokenizer.json"))
    };
    assert!(bytes("one") == bytes("two"));
}

#[test]
fn a_step_draws_questions_up_to_the_recipes_number() {
    let folder = set();
    let set = read(folder.path());
    let records: Vec<&Record> = set.split(Split::Train).collect();
    let recipe = RecordRecipe {
        questions: 1,
        images: 16,
        ..recipe(1)
    };
    let tokenizer = bpe::learn([SIDE, HEIGHT], 300).unwrap();
    let config = config(&recipe.sizes, tokenizer.get_vocab_size(true)).unwrap();
    let around = surroundings(&recipe.sizes, tokenizer).unwrap();
    let teacher = RecordTeacher::new(&around, ModelShape::of(&config)).unwrap();
    let mut rounds = Rounds::new(&recipe, &teacher, &records).unwrap();
    let step = rounds.next_step().unwrap();
    assert_eq!(step.len(), 16);
    let mut questions: Vec<_> = step
        .iter()
        .map(|taught| {
            assert_eq!(taught.lesson.dialogue.branches.len(), 1);
            assert_eq!(taught.lesson.pixels.len(), 3 * 16 * 16);
            taught.lesson.dialogue.branches[0].prompt.clone()
        })
        .collect();
    questions.sort();
    questions.dedup();
    assert_eq!(questions.len(), 2, "both questions are drawn in time");
}

#[test]
fn a_question_that_cannot_be_asked_is_named_by_its_place() {
    let recipe = recipe(1);
    let tokenizer = bpe::learn([SIDE], 300).unwrap();
    let config = config(&recipe.sizes, tokenizer.get_vocab_size(true)).unwrap();
    let around = surroundings(&recipe.sizes, tokenizer).unwrap();
    let teacher = RecordTeacher::new(&around, ModelShape::of(&config)).unwrap();
    let refuse = |question: &str| {
        let record = record(PathBuf::from("a.png"), question, "yes");
        format!("{:#}", teacher.dialogue(&[&record]).unwrap_err())
    };
    let error = refuse("What is <image>?");
    assert!(
        error.starts_with("made-up.json:1, row 0 cannot be learnt from"),
        "{error}"
    );
    let error = refuse(&"long ".repeat(400));
    assert!(error.contains("are more than the 256 positions"), "{error}");
    let records = [
        record("a.png", SIDE, "left"),
        record("a.png", SIDE, &"long ".repeat(400)),
    ];
    let (fit, faults) = teacher.fitting(&records);
    assert_eq!(fit, [&records[0]]);
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0].starts_with("made-up.json:1, row 0: ") && faults[0].ends_with("; left out"),
        "{faults:?}"
    );
}
