//! Answers scored as by LLaVA-Med's published evaluation script (`llava/eval/run_eval.py` of the first
//! release, commit b9a98a7), which papers on medical question answering use.
//!
//! In: a prediction and its reference. Out: the script's scores, its habits included:
//!
//! - A closed answer is right if the prediction holds `yes` or `no` **anywhere**, inside of other words too
//!   (`normal`, `nodule`), and the reference anywhere. So `yes and no` is always right, `abnormal` is right
//!   where `no` is wanted, and where neither is wanted (`left`) the prediction must still hold one of them.
//!   (Before commit b9a98a7 a wrong answer that held one of them was left out of the count.)
//! - Its "exact match" of open answers is no match: the reference's distinct words that occur in the
//!   prediction, divided by the **prediction's** number of words.
//! - A word of the prediction that occurs in the reference counts as often as the prediction repeats it;
//!   so recall does not fall where the reference says it more often.
//! - `none` and `zero` become `0`, `one` to `ten` digits, articles go. A punctuation mark next to a blank
//!   goes, any other becomes a blank; but where the text has a comma between digits all of them go.
//!
//! Its accuracy of open answers, which snaps a prediction to the nearest answer of a given list, is not
//! here.

/// What the script computes of an open answer, each between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Open {
    /// What the script calls the exact match score.
    pub exact: f64,
    pub f1: f64,
    pub precision: f64,
    /// What papers give as the score of open questions.
    pub recall: f64,
}

/// Whether the script counts a closed answer as right.
pub fn closed(prediction: &str, reference: &str) -> bool {
    let (prediction, reference) = (once(prediction), once(reference));
    (prediction.contains("yes") || prediction.contains("no")) && prediction.contains(&reference)
}

/// The script's scores of an open answer.
pub fn open(prediction: &str, reference: &str) -> Open {
    // It brings both to a normal form, and each score does so again.
    let (prediction, reference) = (normalise(&once(prediction)), normalise(&once(reference)));
    let said: Vec<&str> = prediction.split_whitespace().collect();
    let wanted: Vec<&str> = reference.split_whitespace().collect();
    if said.is_empty() || wanted.is_empty() {
        return Open::default();
    }
    let both = said.iter().filter(|word| wanted.contains(word)).count() as f64;
    if both == 0.0 {
        return Open::default();
    }
    let mut found: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|word| said.contains(word))
        .collect();
    found.sort_unstable();
    found.dedup();
    let missed = wanted.iter().filter(|word| !said.contains(word)).count() as f64;
    let (precision, recall) = (both / said.len() as f64, both / (both + missed));
    Open {
        exact: found.len() as f64 / said.len() as f64,
        f1: 2.0 * precision * recall / (precision + recall),
        precision,
        recall,
    }
}

fn once(text: &str) -> String {
    normalise(&text.to_lowercase())
}

const PUNCTUATION: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',',
    '?', '!',
];

/// The script replaces no more full stops than this in a text.
const FULL_STOPS: usize = 32;

/// The script's normal form of a text.
fn normalise(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let grouped = letters
        .windows(3)
        .any(|three| three[1] == ',' && three[0].is_ascii_digit() && three[2].is_ascii_digit());
    let mut cut = text.to_owned();
    for mark in PUNCTUATION {
        let loose = text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        cut = cut.replace(mark, if loose || grouped { "" } else { " " });
    }
    let cut = without_full_stops(&cut).to_lowercase();
    let words: Vec<&str> = cut
        .split_whitespace()
        .map(digit)
        .filter(|word| !["a", "an", "the"].contains(word))
        .map(with_apostrophe)
        .collect();
    words.join(" ").replace(',', "")
}

/// Full stops go, unless a digit follows.
fn without_full_stops(text: &str) -> String {
    let mut left = FULL_STOPS;
    let mut kept = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let before_digit = letters.peek().is_some_and(char::is_ascii_digit);
        if letter == '.' && !before_digit && left > 0 {
            left -= 1;
        } else {
            kept.push(letter);
        }
    }
    kept
}

fn digit(word: &str) -> &str {
    match word {
        "none" | "zero" => "0",
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        other => other,
    }
}

/// Words that get an apostrophe back where exactly one of theirs is missing.
const APOSTROPHES: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't \
    hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll \
    ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at \
    shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's \
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's \
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't \
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd \
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all \
    y'all'll y'all'd've you'd you'd've you'll you're you've";

fn with_apostrophe(word: &str) -> &str {
    if word == "somebody'd" {
        // The script's list has this one the wrong way round.
        return "somebodyd";
    }
    let restored = APOSTROPHES.split(' ').find(|whole| {
        whole.len() == word.len() + 1
            && whole.match_indices('\'').any(|(at, _)| {
                word.get(..at) == Some(&whole[..at]) && word.get(at..) == Some(&whole[at + 1..])
            })
    });
    restored.unwrap_or(word)
}
