//! The measures against the reference programs' numbers, `tests/golden/metrics.json`.

use serde::Deserialize;

use super::interval::Measure;
use super::{bleu, cider, llava_med, meteor, rouge, words};

#[derive(Deserialize)]
struct Golden {
    reports: Reports,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Reports {
    pairs: Vec<Pair>,
    bleu: [f64; 4],
    sacrebleu: [f64; 4],
    rouge_l_coco: f64,
    cider_d: f64,
    meteor: Meteor,
    meteor_shuffled: Shuffled,
}

#[derive(Deserialize)]
struct Pair {
    reference: String,
    prediction: String,
    reference_words: String,
    prediction_words: String,
    rouge_l: f64,
    rouge_l_coco: f64,
    cider_d: f64,
}

#[derive(Deserialize)]
struct Meteor {
    each: Vec<f64>,
    whole: f64,
}

#[derive(Deserialize)]
struct Shuffled {
    pairs: Vec<(String, String)>,
    each: Vec<f64>,
    whole: f64,
}

#[derive(Deserialize)]
struct Answer {
    closed: bool,
    reference: String,
    prediction: String,
    right: Option<bool>,
    exact: Option<f64>,
    f1: Option<f64>,
    precision: Option<f64>,
    recall: Option<f64>,
}

fn golden() -> Golden {
    let text = include_str!("../../../tests/golden/metrics.json");
    serde_json::from_str(text).unwrap()
}

fn split(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Predictions and references as words.
fn cut(pairs: &[Pair]) -> Vec<(Vec<String>, Vec<String>)> {
    let both = |pair: &Pair| {
        (
            words::treebank(&pair.prediction),
            words::treebank(&pair.reference),
        )
    };
    pairs.iter().map(both).collect()
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "{got}, wanted {want}");
}

/// Both compute in f64; sums are in another order.
const EXACT: f64 = 1e-12;

#[test]
fn words_are_those_of_the_treebank_tokenizer() {
    for pair in golden().reports.pairs {
        for (text, want) in [
            (&pair.reference, &pair.reference_words),
            (&pair.prediction, &pair.prediction_words),
        ] {
            assert_eq!(words::treebank(text).join(" "), *want, "of {text:?}");
        }
    }
}

#[test]
fn bleu_is_that_of_pycocoevalcap_and_of_sacrebleu() {
    let reports = golden().reports;
    let pairs = cut(&reports.pairs);
    for order in 1..=bleu::MAX_ORDER {
        let value = bleu::bleu(&pairs, order).value();
        close(value, reports.bleu[order - 1], EXACT);
        // sacrebleu adds nothing to its counts, and speaks of per cent.
        close(100.0 * value, reports.sacrebleu[order - 1], 1e-7);
    }
    let silent = [(vec![], split("the lungs are clear"))];
    close(bleu::bleu(&silent, 4).value(), 0.0, EXACT);
}

#[test]
fn rouge_l_is_that_of_rouge_score_and_of_pycocoevalcap() {
    let reports = golden().reports;
    let mut coco = Vec::new();
    for (pair, (said, wanted)) in reports.pairs.iter().zip(cut(&reports.pairs)) {
        let alphanumeric =
            [&pair.prediction, &pair.reference].map(|text| words::alphanumeric(text));
        close(
            rouge::f1(&alphanumeric[0], &alphanumeric[1]),
            pair.rouge_l,
            EXACT,
        );
        close(rouge::coco(&said, &wanted), pair.rouge_l_coco, EXACT);
        coco.push(rouge::coco(&said, &wanted));
    }
    close(Measure::mean(coco).value(), reports.rouge_l_coco, EXACT);
}

#[test]
fn cider_d_is_that_of_pycocoevalcap() {
    let reports = golden().reports;
    let scores = cider::cider_d(&cut(&reports.pairs));
    for (score, pair) in scores.iter().zip(&reports.pairs) {
        close(*score, pair.cider_d, 1e-10);
    }
    close(Measure::mean(scores).value(), reports.cider_d, 1e-10);
}

#[test]
fn meteor_is_that_of_its_program() {
    let reports = golden().reports;
    let mut pairs = cut(&reports.pairs);
    // The program takes no empty lines.
    pairs.retain(|(said, _)| !said.is_empty());
    assert_eq!(pairs.len(), reports.meteor.each.len());
    close(meteor::meteor(&pairs).value(), reports.meteor.whole, EXACT);
    for (pair, want) in pairs.into_iter().zip(&reports.meteor.each) {
        close(meteor::meteor(&[pair]).value(), *want, EXACT);
    }
    let silent = [(vec![], split("the lungs are clear"))];
    close(meteor::meteor(&silent).value(), 0.0, EXACT);
}

#[test]
fn meteor_finds_the_programs_alignment_among_many() {
    let Shuffled { pairs, each, whole } = golden().reports.meteor_shuffled;
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(wanted, said)| (split(said), split(wanted)))
        .collect();
    let value =
        |pair: &(Vec<String>, Vec<String>)| meteor::meteor(std::slice::from_ref(pair)).value();
    let off: Vec<_> = pairs
        .iter()
        .zip(&each)
        .filter(|(pair, want)| (value(pair) - **want).abs() > EXACT)
        .map(|(pair, want)| (pair, want, value(pair)))
        .collect();
    // Neither search follows every path: of texts of fourteen and thirteen words, but few different ones, they
    // follow different ones.
    assert!(off.len() <= 1, "{} of {}: {off:#?}", off.len(), pairs.len());
    close(meteor::meteor(&pairs).value(), whole, 1e-3);
}

#[test]
fn answers_score_as_in_llava_meds_script() {
    // The script prints six figures of a percentage.
    let close = |got: f64, want: Option<f64>, what: &str| {
        let want = want.unwrap();
        assert!((got - want).abs() < 1e-5, "{what}: {got}, wanted {want}");
    };
    for answer in golden().answers {
        let Answer {
            reference,
            prediction,
            ..
        } = &answer;
        let what = format!("{prediction:?} for {reference:?}");
        if answer.closed {
            let right = llava_med::closed(prediction, reference);
            assert_eq!(Some(right), answer.right, "{what}");
        } else {
            let scores = llava_med::open(prediction, reference);
            close(scores.exact, answer.exact, &what);
            close(scores.f1, answer.f1, &what);
            close(scores.precision, answer.precision, &what);
            close(scores.recall, answer.recall, &what);
        }
    }
}
