//! A maker of adapters for the tests of HTTP.

use norma::base::Base;
use norma::engine::{Event, Request, RequestAdapter};
use norma::http::{Service, self_test};
use norma::preprocess::{ContentPart, Message};
use norma::probe;
use norma_adapters::manifest::FORMAT_VERSION;
use norma_adapters::{
    AdapterValues, Calibration, Generation, Manifest, Scope, SelfTest, SiteTable, Task, format,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden;
use crate::http_server::{BASE, Setup, open_service};

/// Makes adapters away from the asynchronous threads, which the work would block.
pub async fn make<T: Send + 'static>(work: impl FnOnce(&Maker) -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(move || work(&Maker::new()))
        .await
        .unwrap()
}

/// An adapter file, and what it is.
#[derive(Clone)]
pub struct Made {
    pub file: Vec<u8>,
    pub values: AdapterValues,
    pub manifest: Manifest,
    pub generation: Generation,
}

/// Makes adapters for [`BASE`], and knows what each answers alone: it has an engine of its own.
pub struct Maker {
    base: Base,
    service: Service,
    _folder: TempDir,
}

impl Maker {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = open_service(BASE, &Setup::default(), folder.path());
        Self {
            base: golden::open(BASE),
            service,
            _folder: folder,
        }
    }

    pub fn table(&self) -> &SiteTable {
        &self.base.outline().sites
    }

    /// An adapter that differs from the base everywhere in its scope, by its seed.
    pub fn adapter(&self, seed: u32, scope: Scope) -> Made {
        let table = self.table();
        let mut row = self.base.row().unwrap();
        for site in table.selected(scope) {
            let range = table.range(site);
            for index in range.gain.chain(range.bias.into_iter().flatten()) {
                row[index] += 0.6 * ((index as f32 + 1.0) * (seed as f32 + 1.3) * 0.7).sin();
            }
        }
        let values = AdapterValues::new(table, row, scope).unwrap();
        let manifest = self.manifest(&values, scope);
        self.write(values, manifest)
    }

    pub fn write(&self, values: AdapterValues, manifest: Manifest) -> Made {
        let file = format::write(&values.stored(self.table()), &manifest).unwrap();
        let generation = Generation::of(&file);
        Made {
            file,
            values,
            manifest,
            generation,
        }
    }

    fn manifest(&self, values: &AdapterValues, scope: Scope) -> Manifest {
        let mut self_test = SelfTest {
            generator: "probe/1".into(),
            seed: 11,
            size: 48,
            prompt: "Is the heart enlarged?".into(),
            tokens: vec![0; 6],
            top_logits: vec![vec![(0, 0.0); 5]],
            tolerance: None,
        };
        let inputs = self.service.inputs();
        let content = vec![
            ContentPart::Image,
            ContentPart::Text(self_test.prompt.clone()),
        ];
        let request = Request {
            images: vec![
                inputs
                    .image_of(&probe::image(self_test.seed, self_test.size))
                    .unwrap(),
            ],
            top_logits: 5,
            ..Request::new(
                "maker".into(),
                inputs.prompt(&[Message::user(content)]).unwrap(),
                self_test.tokens.len(),
            )
        };
        let steps = self.answer(request, Some(values));
        self_test.tokens = steps.iter().map(|step| step.token).collect();
        self_test.top_logits = steps.into_iter().map(|step| step.top).collect();
        Manifest {
            format_version: FORMAT_VERSION,
            base_digest: self.base.digest(),
            family: "llava".into(),
            task: Task::Vqa,
            scope,
            recipe: json!({"made": "for a test"}),
            data_digest: None,
            metrics: Value::Null,
            calibration: Some(Calibration {
                temperature: 1.5,
                abstention_threshold: 0.5,
            }),
            licence: None,
            self_test,
        }
    }

    fn answer(&self, request: Request, values: Option<&AdapterValues>) -> Vec<self_test::Step> {
        // The values name the generation, so that no slot of the bank is taken for another.
        let row: Vec<u8> = values
            .iter()
            .flat_map(|v| v.row())
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let generation = Generation::of(&row);
        let adapter = values.map(|values| RequestAdapter {
            generation,
            values: values.clone(),
        });
        let mut answer = self
            .service
            .engine()
            .submit(Request { adapter, ..request })
            .unwrap();
        let mut steps = Vec::new();
        while let Some(event) = answer.blocking_recv() {
            match event {
                Event::Token(token) => steps.push(self_test::Step {
                    token: token.token,
                    top: token.top.iter().map(|top| (top.token, top.logit)).collect(),
                }),
                Event::Finished(_) => {}
                Event::Failed(error) => panic!("{error}"),
            }
        }
        steps
    }
}
