//! From the trainer to the server: a calibration fitted there is what `confidence` and `abstained` are made
//! of here. On the phantom base and one of its adapters.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use norma::base::{Base, OpenOptions, WeightType};
use norma::engine::RequestAdapter;
use norma::http::inputs::InputFiles;
use norma::http::{Keys, Limits, Server, ServerOptions, Service, ServiceOptions, State};
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma::model::ops::Kernels;
use norma::model::parameters::Parameters;
use norma::preprocess::{ChatPrompt, ClipPreprocess, TextTokenizer};
use norma_adapters::format;
use norma_trainer::adapter::{Surroundings, with_calibration};
use norma_trainer::asking::Asker;
use norma_trainer::eval::{Answered, Kind, ask, phantom, run};
use norma_trainer::frozen::FrozenBase;
use norma_trainer::phantom::{Example, Split, Task, dataset};
use reqwest::Client;
use serde_json::{Value, json};

use crate::http_server::TestServer;

const NAME: &str = "phantom";

fn deployed(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/phantom")
        .join(path)
}

/// The base as the trainer opens it.
fn open() -> (Base, FrozenBase, Surroundings) {
    let folder = deployed("base");
    let base = Base::open(&folder, &OpenOptions::default()).unwrap();
    let parameters = base.parameters(
        Kernels::for_device(base.checkpoint().device()),
        WeightType::F32,
    );
    let row = base.row().unwrap();
    let frozen = FrozenBase::new(base.config(), &parameters.unwrap(), row, base.digest()).unwrap();
    let around = Surroundings {
        preprocess: ClipPreprocess::from_folder(&folder).unwrap(),
        chat: ChatPrompt::from_folder(&folder).unwrap(),
        tokenizer: TextTokenizer::from_folder(&folder, None).unwrap(),
    };
    (base, frozen, around)
}

fn films(split: Split, count: u64) -> Vec<Example> {
    let films = dataset::examples(Task::Inverted, split, 0, count);
    films.map(Result::unwrap).collect()
}

/// An adapter's answers to the films' questions, reports left out.
fn answers(asker: &Asker, adapter: &RequestAdapter, films: &[Example]) -> Vec<(usize, Answered)> {
    let (items, pictures) = phantom::items(films);
    let questions = items
        .into_iter()
        .zip(pictures)
        .filter(|(item, _)| item.kind != Kind::Report);
    let (items, pictures): (Vec<_>, Vec<_>) = questions.unzip();
    let image = |number: usize| Ok(vec![phantom::film(asker, &films[number])?]);
    let said = ask(asker, Some(adapter), &items, &pictures, image).unwrap();
    let answered = items.into_iter().zip(&said).map(|(item, said)| Answered {
        item,
        prediction: phantom::text(said),
        blind: None,
        confidence: None,
        steps: said.steps(),
    });
    pictures.into_iter().zip(answered).collect()
}

/// The adapter file before and after, and what the trainer says of the test films' questions.
struct Calibrated {
    plain: Vec<u8>,
    file: Vec<u8>,
    threshold: f32,
    films: Vec<Example>,
    /// The film, the answer, the confidence.
    questions: Vec<(usize, Answered, f32)>,
}

fn calibrate() -> Calibrated {
    let (_, frozen, around) = open();
    let plain = std::fs::read(deployed("adapters/inverted.safetensors")).unwrap();
    let table = frozen.model.sites();
    let read = format::read(&plain, table, &frozen.row, &frozen.digest).unwrap();
    let adapter = RequestAdapter {
        generation: read.generation,
        values: read.values.clone(),
    };
    let asker = Asker::of(&frozen, &around, KvType::F32).unwrap();
    let validation: Vec<Answered> = answers(&asker, &adapter, &films(Split::Validation, 40))
        .into_iter()
        .map(|(_, one)| one)
        .collect();
    let fitted = run::fit(&validation, 0.95).unwrap();
    assert!(
        fitted.kept.answered < fitted.kept.n,
        "something is abstained from: {fitted:?}"
    );
    assert_ne!(fitted.calibration.temperature, 1.0);
    let file = with_calibration(&plain, &frozen, fitted.calibration.clone()).unwrap();
    let again = format::read(&file, table, &frozen.row, &frozen.digest).unwrap();
    assert_eq!(
        again.manifest.calibration.as_ref(),
        Some(&fitted.calibration)
    );
    assert_eq!(again.values.row(), read.values.row());
    assert_ne!(again.generation, read.generation);
    let films = films(Split::Test, 6);
    let temperature = fitted.calibration.temperature;
    let questions = answers(&asker, &adapter, &films)
        .into_iter()
        .map(|(film, one)| {
            let steps = one.steps.iter().map(Vec::as_slice);
            let confidence = norma::confidence::of_greedy(steps, temperature);
            (film, one, confidence)
        })
        .collect();
    Calibrated {
        plain,
        file,
        threshold: fitted.calibration.abstention_threshold,
        films,
        questions,
    }
}

fn serve() -> TestServer {
    let data_dir = Arc::new(tempfile::tempdir().unwrap());
    let state = Arc::new(State::new(Keys::none(), NAME).unwrap());
    let server = Server::bind(&state, ServerOptions::default()).unwrap();
    let base = Base::open(&deployed("base"), &OpenOptions::default()).unwrap();
    let options = ServiceOptions {
        name: NAME,
        data_dir: data_dir.path(),
        files: InputFiles::default(),
        weights: WeightType::F32,
        report_prompt: "write a report .",
        lora_folder: None,
        limits: Limits::default(),
    };
    state.install(Arc::new(Service::open(&base, &options).unwrap()));
    TestServer {
        server,
        client: Client::new(),
        data_dir,
    }
}

fn png(film: &Example) -> String {
    let mut bytes = Cursor::new(Vec::new());
    film.film()
        .to_rgb()
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    format!(
        "data:image/png;base64,{}",
        STANDARD.encode(bytes.into_inner())
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fitted_calibration_decides_which_answers_the_server_gives() {
    let made = tokio::task::spawn_blocking(calibrate).await.unwrap();
    let server = serve();
    server.publish(&made.plain, "before").await;
    server.publish(&made.file, "after").await;
    let ask = async |model: &str, film: usize, question: &str| -> Value {
        let image = png(&made.films[film]);
        let body = json!({"model": model, "image": image, "question": question});
        let response = server.post("/v1/vqa", &body).send().await.unwrap();
        response.json().await.unwrap()
    };
    let (mut given, mut abstained) = ([0, 0], [0, 0]);
    for (film, expected, confidence) in &made.questions {
        let answer = ask("after", *film, &expected.item.question).await;
        let text = answer["answer"].as_str().unwrap();
        assert_eq!(
            text.replace(' ', ""),
            expected.prediction.replace(' ', ""),
            "{answer}"
        );
        let served = answer["confidence"].as_f64().unwrap() as f32;
        assert_eq!(served, *confidence, "the trainer's number, to the bit");
        assert_eq!(answer["abstained"], served < made.threshold);
        let right = usize::from(expected.prediction == expected.item.reference);
        let counts = if served < made.threshold {
            &mut abstained
        } else {
            &mut given
        };
        counts[0] += 1;
        counts[1] += right;
    }
    let [[given, right], [abstained, lost]] = [given, abstained];
    assert!(
        given >= 10 && abstained >= 3,
        "{given} given, {abstained} abstained from"
    );
    assert!(
        right * abstained > lost * given,
        "what is given is right more often: {right} of {given}, {lost} of {abstained}"
    );
    let (film, expected, _) = &made.questions[0];
    let before = ask("before", *film, &expected.item.question).await;
    assert_eq!(
        (&before["confidence"], &before["abstained"]),
        (&Value::Null, &Value::Null)
    );
    server.stop().await;
}
