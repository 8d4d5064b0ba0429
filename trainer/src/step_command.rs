//! `step`: times steps of tuning. In: a base, and lessons from a file or none. Out: what was measured, as
//! text or as one line of JSON.

#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use norma::base::WeightType;
use norma::model::{MedVlm, ModelShape};
use norma_adapters::Scope;
use norma_trainer::batch::Dialogue;
use norma_trainer::lesson::Lesson;
use norma_trainer::methods::{Choice, Method};
use norma_trainer::opened;
use norma_trainer::step_bench::{Drawn, Measured, Plan, measure};
use serde::Deserialize;

use crate::commands::read_json;

#[derive(clap::Args)]
pub struct Step {
    /// The base's folder. It needs no tokenizer.
    #[arg(long)]
    base: PathBuf,
    /// What the frozen weights are held as, as `norma serve` has it.
    #[arg(long, value_name = "TYPE", default_value_t = WeightType::F32)]
    weights: WeightType,
    /// Where norm values learn: `all`, `vision` or `language`.
    #[arg(long, default_value = "all")]
    scope: Scope,
    /// Steps, all on the same images.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Images a step.
    #[arg(long, default_value_t = 1)]
    images: usize,
    /// Questions about each image, in one packed sequence.
    #[arg(long, default_value_t = 1)]
    questions: usize,
    /// Tokens of a question.
    #[arg(long, default_value_t = 24)]
    prompt_tokens: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 8)]
    answer_tokens: usize,
    /// Seed of images and tokens.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A JSON file of images and token rows in place of drawn ones: a list of objects with `pixels`, the name
    /// of a file beside it of f32 values `[3, size, size]`, and `sequences`, pairs of token rows (image rows
    /// are `image_token`) and where the answer starts.
    #[arg(long, value_name = "FILE", requires = "image_token")]
    examples: Option<PathBuf>,
    /// The token that stands for an image row in `--examples`.
    #[arg(long, value_name = "ID")]
    image_token: Option<u32>,
    /// The learning rate.
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,
    /// Shards that the images of a step are dealt to.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Keep only the inputs of layers for the way back, and compute the rest again.
    #[arg(long)]
    checkpoint_layers: bool,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// One image of `--examples`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    pixels: PathBuf,
    sequences: Vec<(Vec<u32>, usize)>,
}

/// Opens the base, takes the steps, prints.
pub fn step(arguments: &Step) -> Result<()> {
    let choice = Choice {
        method: Method::default(),
        scope: arguments.scope,
        seed: arguments.seed,
    };
    let base = opened::without_surroundings(&arguments.base, arguments.weights, Some(&choice))?;
    let shape = base.model.shape();
    let lessons = match (&arguments.examples, arguments.image_token) {
        (Some(file), Some(image_token)) => read(file, image_token, shape)?,
        _ => Drawn {
            images: arguments.images,
            questions: arguments.questions,
            prompt: arguments.prompt_tokens,
            answer: arguments.answer_tokens,
            seed: arguments.seed,
        }
        .lessons(shape)?,
    };
    let plan = Plan {
        choice,
        steps: arguments.steps,
        rate: arguments.rate,
        shards: arguments.shards,
        checkpoint_layers: arguments.checkpoint_layers,
    };
    let measured = measure(&base, &lessons, &plan)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&measured)?);
    } else {
        print(&measured);
    }
    Ok(())
}

fn print(measured: &Measured) {
    println!(
        "{} questions, {} rows in the decoder, {} values learn",
        measured.questions, measured.rows, measured.trainable
    );
    let steps = measured.seconds.iter().zip(&measured.losses);
    for (seconds, loss) in steps {
        println!("{seconds:8.3} s  loss {loss:.6}");
    }
    println!(
        "fastest: {:.3} s a step, {:.3} s a question; image features, once: {:.3} s",
        measured.seconds_a_step, measured.seconds_a_question, measured.seconds_of_features
    );
    let gib = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
        None => "unknown".into(),
    };
    println!(
        "memory at most: {} ({} when the base was loaded)",
        gib(measured.peak_bytes),
        gib(measured.loaded_bytes)
    );
}

fn read(file: &Path, image_token: u32, shape: &ModelShape) -> Result<Vec<Lesson>> {
    let examples: Vec<Example> = read_json(file)?;
    let folder = file.parent().unwrap_or(file);
    let n_pixels = 3 * shape.image_size * shape.image_size;
    let lesson = |example: Example| {
        let place = folder.join(&example.pixels);
        let bytes =
            std::fs::read(&place).with_context(|| format!("cannot read {}", place.display()))?;
        let (values, rest) = bytes.as_chunks();
        ensure!(
            values.len() == n_pixels && rest.is_empty(),
            "{} has {} bytes, the tower takes {n_pixels} values of f32",
            place.display(),
            bytes.len()
        );
        Ok(Lesson {
            pixels: values
                .iter()
                .map(|value| f32::from_le_bytes(*value))
                .collect(),
            dialogue: Dialogue::from_sequences(&example.sequences, image_token)?,
        })
    };
    examples.into_iter().map(lesson).collect()
}
