//! ROUGE-L (Lin, 2004): the longest common subsequence of words, as two programs compute it.
//!
//! In: words of a prediction and its reference. Out: a score between 0 and 1, of which a corpus has the
//! mean.

/// Precision and recall as one number, of equal weight: rouge-score's `rougeL`.
pub fn f1(prediction: &[String], reference: &[String]) -> f64 {
    f(prediction, reference, 1.0)
}

/// Recall weighs 1.2 times as much: pycocoevalcap's `ROUGE_L`, which papers on captions and reports give.
pub fn coco(prediction: &[String], reference: &[String]) -> f64 {
    f(prediction, reference, 1.2)
}

fn f(prediction: &[String], reference: &[String], beta: f64) -> f64 {
    let common = common_subsequence(prediction, reference) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (
        common / prediction.len() as f64,
        common / reference.len() as f64,
    );
    let weight = beta * beta;
    (1.0 + weight) * precision * recall / (recall + weight * precision)
}

/// The length of the longest common subsequence.
fn common_subsequence(one: &[String], other: &[String]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for word in one {
        let mut diagonal = 0;
        for (at, same) in other.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == same {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[other.len()]
}
