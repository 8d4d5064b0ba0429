//! `eval` and `calibrate`: what is asked of whom, then the library, then files and a table.

#![expect(clippy::print_stdout, reason = "the output of commands")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use norma::base::WeightType;
use norma::engine::{RequestAdapter, RequestImage};
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma_adapters::manifest::Calibration;
use norma_adapters::{Adapter, format};
use norma_trainer::adapter::{Surroundings, with_calibration};
use norma_trainer::asking::{Asker, Said, adapter_of};
use norma_trainer::data::{self, Image};
use norma_trainer::eval::run::{self, About, Earlier, Run};
use norma_trainer::eval::{Answered, Item, Kind, ask, export, phantom};
use norma_trainer::frozen::FrozenBase;
use norma_trainer::opened;
use norma_trainer::phantom::{Example, Split, Task};
use norma_trainer::pictures;
use norma_trainer::records::by_image;
use norma_trainer::records::eval::item;
use norma_trainer::records::lesson::RecordTeacher;

use crate::commands::{examples, print_summary, write};
use crate::record_commands::fitting;
use crate::set_options::{MaybeSet, Set};
use crate::{Held, Part, word};

/// What is asked, and of which base.
#[derive(clap::Args)]
struct Examined {
    #[command(flatten)]
    set: MaybeSet,
    #[command(flatten)]
    held: Held,
    /// Which part of a real set, where no fold is named.
    #[arg(long, default_value = "validation")]
    part: Part,
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// What the base's weights are held as, as `norma serve` has it.
    #[arg(long, value_name = "TYPE", default_value_t = WeightType::F32)]
    weights: WeightType,
    /// What keys and values are kept as, f32 or bf16; by default as `norma serve` has it beside these
    /// weights.
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// What is asked of films.
    #[arg(long, value_parser = word::<Task>, default_value = "pretrain")]
    task: Task,
    /// Which films; by default `test`, and to calibrate on `validation`.
    #[arg(long, value_parser = word::<Split>)]
    split: Option<Split>,
    /// Seed of the films.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many films.
    #[arg(long, default_value_t = 500)]
    count: u64,
}

/// Arguments of `eval`.
#[derive(clap::Args)]
pub struct Eval {
    #[command(flatten)]
    examined: Examined,
    /// An adapter file; without one the base itself is measured.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What a method other than `layernorm` learnt, as `tune` wrote it.
    #[arg(long, value_name = "FILE", conflicts_with = "adapter")]
    trained: Option<PathBuf>,
    /// Do not ask everything again without a picture.
    #[arg(long)]
    no_blind: bool,
    /// An earlier run's `--json` file on the same questions: how far this run lies above it.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where everything is written, every answer included.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where predictions are written as CSV; reports also as FILE.reference.csv and FILE.prediction.csv,
    /// for programs that judge their content.
    #[arg(long, value_name = "FILE.csv")]
    predictions: Option<PathBuf>,
}

/// Arguments of `calibrate`.
#[derive(clap::Args)]
pub struct Calibrate {
    #[command(flatten)]
    examined: Examined,
    /// The adapter file.
    #[arg(long)]
    adapter: PathBuf,
    /// The share of answers, of those that are not abstained from, that shall be right.
    #[arg(long, default_value_t = 0.9)]
    accuracy: f64,
    /// The adapter file to write, the same but for its calibration.
    #[arg(long)]
    out: PathBuf,
}

/// Measures a base, with an adapter or without.
pub fn eval(arguments: &Eval) -> Result<()> {
    let examined = &arguments.examined;
    let subject = match &arguments.trained {
        Some(file) => Subject::trained(examined, file)?,
        None => Subject::open(examined, arguments.adapter.as_deref())?,
    };
    let exam = Exam::new(examined, &subject, Split::Test)?;
    let earlier = arguments
        .against
        .as_deref()
        .map(Earlier::read)
        .transpose()?;
    let asker = subject.asker()?;
    let mut answers = exam.answers(&asker, &subject)?;
    if !arguments.no_blind {
        let blank = asker.blank()?;
        let said = exam.ask(&asker, &subject, |_| Ok(vec![blank.clone()]))?;
        for (answer, said) in answers.iter_mut().zip(&said) {
            answer.blind = Some(exam.text(said));
        }
    }
    drop(asker);
    let against = earlier.map(|(earlier, name)| run::against(&answers, &earlier, &name));
    let texts = answers.iter().map(|one| one.prediction.as_str());
    let run = Run {
        scores: run::scores(&answers, &exam.majority),
        calibration: run::calibrated(&answers, subject.calibration()),
        phantom: exam
            .films
            .as_ref()
            .map(|films| phantom::judge(films, texts)),
        against: against.transpose()?,
        about: exam.about(&subject),
        answers,
    };
    print!("{run}");
    if let Some(summary) = &run.phantom {
        print_summary(summary);
    }
    if let Some(path) = &arguments.json {
        write(path, serde_json::to_string_pretty(&run)?.as_bytes())?;
    }
    if let Some(path) = &arguments.predictions {
        write_predictions(path, &run.answers)?;
    }
    Ok(())
}

/// Fits an adapter's calibration on held-out questions and writes the adapter anew.
pub fn calibrate(arguments: &Calibrate) -> Result<()> {
    let Calibrate {
        examined,
        adapter,
        accuracy,
        out,
    } = arguments;
    ensure!(
        (0.0..=1.0).contains(accuracy),
        "--accuracy is {accuracy}, it must lie between 0 and 1"
    );
    let subject = Subject::open(examined, Some(adapter))?;
    let exam = Exam::new(examined, &subject, Split::Validation)?;
    let asker = subject.asker()?;
    let answers = exam.answers(&asker, &subject)?;
    drop(asker);
    let fitted = run::fit(&answers, *accuracy)?;
    println!("{}: {}\n{fitted}", exam.set, exam.part);
    let bytes = std::fs::read(adapter)?;
    let bytes = with_calibration(&bytes, &subject.base, fitted.calibration)?;
    write(out, &bytes)?;
    println!("{} ({} bytes)", out.display(), bytes.len());
    Ok(())
}

fn write_predictions(path: &Path, answers: &[Answered]) -> Result<()> {
    write(path, &export::all(answers)?)?;
    for (whose, ending) in [
        (export::Whose::Reference, "reference.csv"),
        (export::Whose::Prediction, "prediction.csv"),
    ] {
        if let Some(bytes) = export::reports(answers, whose)? {
            write(&path.with_extension(ending), &bytes)?;
        }
    }
    Ok(())
}

/// Who is asked.
struct Subject {
    base: FrozenBase,
    around: Surroundings,
    adapter: Option<Adapter>,
    /// What another method than `layernorm` learnt: its norm values, and its file's name.
    trained: Option<(RequestAdapter, String)>,
    weights: WeightType,
    kv_type: KvType,
}

impl Subject {
    fn open(examined: &Examined, adapter: Option<&Path>) -> Result<Self> {
        let weights = examined.weights;
        let (base, around) = opened::to_measure(&examined.base, weights)?;
        let adapter = match adapter {
            None => None,
            Some(path) => {
                let shown = path.display();
                let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
                let read = format::read(&bytes, base.model.sites(), &base.row, &base.digest);
                Some(read.with_context(|| format!("{shown} does not fit the base"))?)
            }
        };
        Ok(Self {
            base,
            around,
            adapter,
            trained: None,
            weights,
            kv_type: examined.kv_type.unwrap_or(weights.default_kv()),
        })
    }

    fn trained(examined: &Examined, file: &Path) -> Result<Self> {
        let weights = examined.weights;
        let (base, around, row) = opened::with_trained(&examined.base, weights, file)?;
        let trained = (adapter_of(&base, &row)?, file.display().to_string());
        Ok(Self {
            base,
            around,
            adapter: None,
            trained: Some(trained),
            weights,
            kv_type: examined.kv_type.unwrap_or(weights.default_kv()),
        })
    }

    fn asker(&self) -> Result<Asker<'_>> {
        Asker::of(&self.base, &self.around, self.kv_type)
    }

    fn adapter(&self) -> Option<RequestAdapter> {
        let file = self.adapter.as_ref().map(|adapter| RequestAdapter {
            generation: adapter.generation,
            values: adapter.values.clone(),
        });
        file.or_else(|| Some(self.trained.as_ref()?.0.clone()))
    }

    fn calibration(&self) -> Option<&Calibration> {
        self.adapter
            .as_ref()
            .and_then(|adapter| adapter.manifest.calibration.as_ref())
    }
}

/// What is asked.
struct Exam {
    set: String,
    part: String,
    items: Vec<Item>,
    /// The number of each item's picture.
    pictures: Vec<usize>,
    /// What the numbers stand for, where they are files.
    files: Vec<Image>,
    /// What they stand for where they are films.
    films: Option<Vec<Example>>,
    majority: BTreeMap<Kind, String>,
    majority_of: String,
}

impl Exam {
    /// `split`: of films, where none is named.
    fn new(examined: &Examined, subject: &Subject, split: Split) -> Result<Self> {
        match examined.set.get() {
            Some(set) => Self::records(examined, subject, &set),
            None => Self::films(examined, examined.split.unwrap_or(split)),
        }
    }

    fn records(examined: &Examined, subject: &Subject, source: &Set) -> Result<Self> {
        let Examined { held, part, .. } = examined;
        let set = source.read_checked()?;
        let teacher = RecordTeacher::new(&subject.around, *subject.base.model.shape())?;
        let (fold, part) = (held.fold()?, data::Split::from(*part));
        let training = set.split(data::Split::Train);
        let training: Vec<_> = match &fold {
            Some(fold) => fold.part(training).0,
            None => training.collect(),
        };
        let (mut items, mut pictures, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let records = fitting(source, &teacher, held.of(&set, part)?)?;
        for (number, (image, records)) in by_image(records).into_iter().enumerate() {
            files.push(image.clone());
            pictures.extend(vec![number; records.len()]);
            items.extend(records.into_iter().map(item));
        }
        let truths: Vec<Item> = training.into_iter().map(item).collect();
        let part = match held.folds {
            Some(folds) => {
                let (number, seed) = (held.hold_out, held.fold_seed);
                format!("fold {number} of {folds} of the training part, seed {seed}")
            }
            None => serde_json::to_value(part)?
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        Ok(Self {
            set: source.to_string(),
            part,
            majority: most(&truths),
            majority_of: "the training part".into(),
            items,
            pictures,
            files,
            films: None,
        })
    }

    fn films(examined: &Examined, split: Split) -> Result<Self> {
        let Examined {
            task, seed, count, ..
        } = examined;
        let films = examples(*task, split, *seed, *count)?;
        let (items, pictures) = phantom::items(&films);
        let word = |value| -> Result<String> { Ok(serde_json::from_value(value)?) };
        Ok(Self {
            set: format!("phantom films, {}", word(serde_json::to_value(task)?)?),
            part: word(serde_json::to_value(split)?)?,
            majority: most(&items),
            majority_of: "these very questions".into(),
            items,
            pictures,
            files: Vec::new(),
            films: Some(films),
        })
    }

    fn ask(
        &self,
        asker: &Asker,
        subject: &Subject,
        images: impl FnMut(usize) -> Result<Vec<RequestImage>>,
    ) -> Result<Vec<Said>> {
        let adapter = subject.adapter();
        ask(asker, adapter.as_ref(), &self.items, &self.pictures, images)
    }

    fn answers(&self, asker: &Asker, subject: &Subject) -> Result<Vec<Answered>> {
        let said = self.ask(asker, subject, |number| {
            let image = match &self.films {
                Some(films) => phantom::film(asker, &films[number])?,
                None => asker.image(&pictures::read(&self.files[number])?)?,
            };
            Ok(vec![image])
        })?;
        let temperature = subject.calibration().map_or(1.0, |one| one.temperature);
        let answered = |(item, said): (&Item, &Said)| Answered {
            item: item.clone(),
            prediction: self.text(said),
            blind: None,
            confidence: (item.kind != Kind::Report).then(|| said.confidence(temperature)),
            steps: said.steps(),
        };
        Ok(self.items.iter().zip(&said).map(answered).collect())
    }

    /// In the form in which it is compared.
    fn text(&self, said: &Said) -> String {
        match self.films {
            Some(_) => phantom::text(said),
            None => said.text.clone(),
        }
    }

    fn about(&self, subject: &Subject) -> About {
        let generation = |adapter: &Adapter| adapter.generation.digest().to_string();
        let file = subject.trained.as_ref().map(|(_, file)| file.clone());
        About {
            set: self.set.clone(),
            part: self.part.clone(),
            base: subject.base.digest.to_string(),
            adapter: subject.adapter.as_ref().map(generation).or(file),
            weights: subject.weights.to_string(),
            kv_type: subject.kv_type.to_string(),
            majority: self.majority.clone(),
            majority_of: self.majority_of.clone(),
        }
    }
}

fn most(items: &[Item]) -> BTreeMap<Kind, String> {
    run::majority(items.iter().map(|one| (one.kind, one.reference.as_str())))
}
