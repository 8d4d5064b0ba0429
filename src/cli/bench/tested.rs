//! Self-tests that a server will accept: the engine itself is asked what an adapter answers.

use anyhow::{Context, bail};
use norma::engine::{Event, Priority, Request, RequestAdapter};
use norma::http::keys::LOCAL_TENANT;
use norma::http::self_test::{self, Step};
use norma::preprocess::{ContentPart, Message};
use norma::probe;
use norma_adapters::manifest::PROBE;
use norma_adapters::{AdapterValues, Generation, SelfTest};

use super::local::{Local, refused};

const TOKENS: usize = 8;
const TOP: usize = 5;

/// The file of a seed's adapter with what it answers here. Blocks.
pub fn file(local: &Local, seed: u64) -> anyhow::Result<Vec<u8>> {
    let values = local.maker().values(seed)?;
    let mut test = SelfTest {
        generator: PROBE.into(),
        seed,
        size: 64,
        prompt: "Is the heart enlarged?".into(),
        tokens: vec![0; TOKENS],
        top_logits: vec![vec![(0, 0.0); TOP]; TOKENS],
        tolerance: None,
    };
    // The values name the generation here, since the file does not exist yet.
    let bytes: Vec<u8> = values.row().iter().flat_map(|v| v.to_le_bytes()).collect();
    let steps = play(local, &test, (Generation::of(&bytes), values))?;
    test.tokens = steps.iter().map(|step| step.token).collect();
    test.top_logits = steps
        .into_iter()
        .map(|step| step.top.into_iter().take(TOP).collect())
        .collect();
    local.maker().file(seed, test)
}

/// What an adapter answers to a self-test. Blocks.
pub fn play(
    local: &Local,
    test: &SelfTest,
    (generation, values): (Generation, AdapterValues),
) -> anyhow::Result<Vec<Step>> {
    let inputs = local.service().inputs();
    let content = vec![ContentPart::Image, ContentPart::Text(test.prompt.clone())];
    let prompt = inputs
        .prompt(&[Message::user(content)])
        .map_err(|error| refused(&error))?;
    let image = inputs
        .image_of(&probe::image(test.seed, test.size))
        .map_err(|error| refused(&error))?;
    let request = Request {
        adapter: Some(RequestAdapter { generation, values }),
        images: vec![image],
        top_logits: self_test::top_logits(test),
        priority: Priority::Background,
        ..Request::new(LOCAL_TENANT.into(), prompt, test.tokens.len())
    };
    local.count_request();
    let mut answer = local.service().engine().submit(request)?;
    let mut steps = Vec::new();
    while let Some(event) = answer.blocking_recv() {
        match event {
            Event::Token(token) => steps.push(Step {
                token: token.token,
                top: token.top.iter().map(|top| (top.token, top.logit)).collect(),
            }),
            Event::Finished(_) => {}
            Event::Failed(error) => bail!("a self-test failed: {error}"),
        }
    }
    (!steps.is_empty())
        .then_some(steps)
        .context("a self-test has no answer")
}
