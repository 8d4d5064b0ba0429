//! A base from nothing, as a folder, opened by the server's loader, tuned, as an adapter file: every
//! step with the answers of the one before.

use norma::base::{Base, OpenOptions};
use norma::engine::RequestAdapter;
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma::preprocess::{
    ChatPrompt, ClipPreprocess, ContentPart, Message, PromptToken, TextTokenizer,
};
use norma_adapters::manifest::Task as ManifestTask;
use norma_adapters::{Scope, format};
use serde_json::{Value, json};

use crate::adapter::{Card, Surroundings, write};
use crate::asking::{Asker, Said, adapter_of};
use crate::batch::{Dialogue, pack};
use crate::extras::Extras;
use crate::folder::{self, Beside, Storage};
use crate::frozen::FrozenBase;
use crate::learner::answer_loss;
use crate::lesson::{Lesson, Teacher, pixels};
use crate::methods::Method;
use crate::optimizer::{AdamConfig, Schedule};
use crate::phantom::draw::SIDE;
use crate::phantom::turns::Mix;
use crate::phantom::{Example, Split, Task};
use crate::phantom_base::Sizes;
use crate::pretrain::{PretrainRecipe, Pretrained, pretrain};
use crate::tune::{TuneRecipe, tune};
use crate::variables::NormVariables;

fn schedule(steps: usize) -> Schedule {
    Schedule {
        peak: 0.01,
        warm_up: 1,
        steps,
        floor: 0.1,
    }
}

fn recipe() -> PretrainRecipe {
    PretrainRecipe {
        seed: 5,
        sizes: Sizes {
            width: 32,
            head: 16,
            tower_layers: 2,
            tower_inner: 48,
            decoder_layers: 2,
            decoder_inner: 48,
        },
        films: (3, 3),
        shards: 2,
        mix: Mix {
            questions: 2,
            reports: 1,
            ..Mix::default()
        },
        warm_up: schedule(2),
        joint: schedule(3),
        label_weight: 0.5,
        tower_rate: 0.5,
        weight_decay: 0.05,
        adam: AdamConfig::default(),
        clip: 1.0,
    }
}

fn run() -> (Pretrained, Vec<f64>) {
    let mut losses = Vec::new();
    let base = pretrain(&recipe(), |progress| losses.push(progress.loss)).unwrap();
    (base, losses)
}

fn lessons(task: Task, count: u64) -> Vec<Lesson> {
    let teacher = Teacher::new().unwrap();
    let example = |index| Example::new(task, Split::Train, 9, index).unwrap();
    (0..count)
        .map(|index| teacher.lesson(&example(index)).unwrap())
        .collect()
}

fn open(folder: &std::path::Path) -> (FrozenBase, Surroundings) {
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

fn loss(model: &norma::model::llava::Llava, norms: &NormVariables, lessons: &[Lesson]) -> f32 {
    let pixels = pixels(lessons.iter(), SIDE, model.device()).unwrap();
    let slots = vec![0; lessons.len()];
    let features = model.encode_images(&pixels, &slots, norms.bank()).unwrap();
    let packed = pack(lessons.iter().map(|lesson| &lesson.dialogue));
    let loss = answer_loss(model, norms.bank(), &packed, Some(features)).unwrap();
    loss.to_scalar().unwrap()
}

fn base_norms(base: &FrozenBase) -> NormVariables {
    NormVariables::new(base.model.sites(), &base.row, None, base.model.device()).unwrap()
}

#[test]
fn a_recipe_gives_the_same_folder_twice() {
    let ((one, losses), (two, again)) = (run(), run());
    assert_eq!(losses, again);
    assert_eq!(losses.len(), 5);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    folder::write(
        &one,
        Beside::phantom().unwrap(),
        Storage::Float16,
        folders[0].path(),
    )
    .unwrap();
    folder::write(
        &two,
        Beside::phantom().unwrap(),
        Storage::Float16,
        folders[1].path(),
    )
    .unwrap();
    let read = |at: usize| std::fs::read(folders[at].path().join("model.safetensors")).unwrap();
    assert_eq!(read(0), read(1));
}

#[test]
fn the_written_folder_answers_as_the_trained_model_does() {
    let (trained, _) = run();
    let folder = tempfile::tempdir().unwrap();
    folder::write(
        &trained,
        Beside::phantom().unwrap(),
        Storage::Float32,
        folder.path(),
    )
    .unwrap();
    let (opened, around) = open(folder.path());
    let lessons = lessons(Task::Pretrain, 3);
    let before = loss(&trained.model, &trained.norms, &lessons);
    let after = loss(&opened.model, &base_norms(&opened), &lessons);
    assert!((before - after).abs() < 1e-5 * before, "{before} {after}");

    // The folder's own template, tokenizer and processor give the lesson's rows and pixels.
    let example = Example::new(Task::Pretrain, Split::Train, 9, 0).unwrap();
    let question = example.turns[0].question.clone();
    let message = Message::user(vec![ContentPart::Image, ContentPart::Text(question)]);
    let tokens = opened.model.shape().image_tokens;
    let prompt = around
        .chat
        .prepare(&around.tokenizer, &[message], tokens)
        .unwrap();
    let text: Vec<u32> = prompt
        .tokens
        .iter()
        .filter_map(|token| match token {
            PromptToken::Text(token) => Some(*token),
            PromptToken::Image { .. } => None,
        })
        .collect();
    let dialogue = &lessons[0].dialogue;
    let taught: Vec<u32> = dialogue
        .prefix
        .iter()
        .filter_map(|row| match row {
            norma::model::step::RowInput::Token(token) => Some(*token),
            norma::model::step::RowInput::Feature(_) => None,
        })
        .chain(dialogue.branches[0].prompt.iter().copied())
        .collect();
    assert_eq!(text, taught);
    assert_eq!(prompt.tokens.len(), taught.len() + tokens);
    let pixels = around.preprocess.pixels(&example.film().to_rgb()).unwrap();
    assert_eq!(
        pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        lessons[0].pixels
    );
}

/// What the engine answers to the lessons' questions, `answers[lesson][turn]`.
fn ask(asker: &Asker, adapter: Option<&RequestAdapter>, examples: &[Example]) -> Vec<Vec<Said>> {
    let questions = examples.iter().flat_map(|example| {
        let image = asker.image(&example.film().to_rgb()).unwrap();
        let turns = example.turns.iter();
        turns.map(move |turn| asker.question(vec![image.clone()], &turn.question, 6))
    });
    let mut said = asker.answers(adapter, questions).unwrap().into_iter();
    let of_one = |example: &Example| said.by_ref().take(example.turns.len()).collect();
    examples.iter().map(of_one).collect()
}

#[test]
fn the_engines_answers_are_those_of_whole_sequences() {
    let (trained, _) = run();
    let folder = tempfile::tempdir().unwrap();
    let beside = Beside::phantom().unwrap();
    folder::write(&trained, beside, Storage::Float32, folder.path()).unwrap();
    let (base, around) = open(folder.path());
    // Values that no base has: what is asked must be answered with the adapter's.
    let mut row = base.row.clone();
    for (index, value) in row.iter_mut().enumerate() {
        *value += 0.3 * (index as f32 * 0.7).sin();
    }
    let asker = Asker::of(&base, &around, KvType::F32).unwrap();
    let adapter = adapter_of(&base, &row).unwrap();
    let examples: Vec<Example> = (0..3)
        .map(|index| Example::new(Task::Pretrain, Split::Train, 9, index).unwrap())
        .collect();
    let answers = ask(&asker, Some(&adapter), &examples);
    let without = ask(&asker, None, &examples);
    assert_ne!(answers, without);

    let (model, lessons) = (&base.model, lessons(Task::Pretrain, 3));
    let norms = NormVariables::new(model.sites(), &row, None, model.device()).unwrap();
    let pixels = pixels(lessons.iter(), SIDE, model.device()).unwrap();
    let features = model.encode_images(&pixels, &[0; 3], norms.bank()).unwrap();
    let mut said: Vec<Dialogue> = lessons.iter().map(|one| one.dialogue.clone()).collect();
    for (dialogue, answers) in said.iter_mut().zip(&answers) {
        for (branch, answer) in dialogue.branches.iter_mut().zip(answers) {
            assert!(!answer.tokens.is_empty() && answer.tokens.len() <= 6);
            branch.answer.clone_from(&answer.tokens);
        }
    }
    // Fed back as whole sequences, every token is the best one, with the same best logits.
    let mut packed = pack(&said);
    packed.step.image_features = Some(features);
    let logits = model.forward(&packed.step, norms.bank(), None).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    let tops: Vec<_> = answers
        .iter()
        .flatten()
        .flat_map(|answer| &answer.top)
        .collect();
    assert_eq!(tops.len(), logits.len());
    for ((row, target), top) in logits.iter().zip(&packed.targets).zip(tops) {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!((row[*target as usize] - best).abs() < 1e-4);
        assert_eq!(top.len(), norma::confidence::TOP_TOKENS);
        for one in top {
            assert!((row[one.token as usize] - one.logit).abs() < 1e-4);
        }
    }
}

#[test]
fn a_tuned_adapter_reads_back_and_repeats_to_the_byte() {
    let (trained, _) = run();
    let folder = tempfile::tempdir().unwrap();
    folder::write(
        &trained,
        Beside::phantom().unwrap(),
        Storage::Float16,
        folder.path(),
    )
    .unwrap();
    let (base, around) = open(folder.path());
    let lessons = lessons(Task::Urgent, 6);
    let recipe = TuneRecipe {
        seed: 2,
        scope: Scope::All,
        method: Method::default(),
        images: 4,
        shards: 2,
        schedule: schedule(6),
        adam: AdamConfig::default(),
        clip: 1.0,
        checkpoint_layers: false,
        extras: Extras::default(),
    };
    let make = || {
        let tuned = tune(&base, &lessons, &recipe, |_| {}).unwrap();
        assert!(tuned.losses[5] < tuned.losses[0]);
        let card = Card {
            task: ManifestTask::Vqa,
            scope: recipe.scope,
            recipe: serde_json::to_value(&recipe).unwrap(),
            data_digest: None,
            metrics: Value::Null,
            licence: None,
        };
        (
            write(&base, &around, tuned.row.clone(), card).unwrap(),
            tuned.row,
        )
    };
    let ((bytes, row), (again, _)) = (make(), make());
    assert_eq!(bytes, again);
    let table = base.model.sites();
    let adapter = format::read(&bytes, table, &base.row, &base.digest).unwrap();
    assert_eq!(adapter.values.row(), row);
    assert_eq!(adapter.manifest.recipe["schedule"]["steps"], json!(6));
    let test = &adapter.manifest.self_test;
    assert!(!test.tokens.is_empty() && test.tokens.len() == test.top_logits.len());

    let refuse = |recipe: &TuneRecipe, lessons: &[Lesson]| {
        tune(&base, lessons, recipe, |_| {})
            .err()
            .unwrap()
            .to_string()
    };
    let nowhere = TuneRecipe {
        scope: Scope::Projector,
        ..recipe.clone()
    };
    assert!(refuse(&nowhere, &lessons).contains("nothing would be trained"));
    assert!(refuse(&recipe, &[]).contains("no lessons"));
    let still = TuneRecipe {
        schedule: Schedule {
            peak: 0.0,
            ..recipe.schedule
        },
        ..recipe.clone()
    };
    assert!(refuse(&still, &lessons).contains("moved"));
}
