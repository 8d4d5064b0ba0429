//! Texts as words, in the ways in which published scores cut them. In: a text. Out: its words.
//!
//! Scores of different tokenisations cannot be compared; so these are the reference programs' ways.

/// Words as the Penn Treebank tokenizer of pycocoevalcap makes them, lower case and without punctuation:
/// what BLEU, METEOR and CIDEr-D of captions and reports are usually computed on. Agrees with it on plain
/// English reports, numbers, measures and usual abbreviations included; not on web addresses and the like.
///
/// Two of its habits are kept because published numbers have them: brackets stay as `-lrb-` and `-rrb-`,
/// and `can't` is `ca n't`.
pub fn treebank(text: &str) -> Vec<String> {
    let text = text.to_lowercase().replace('’', "'");
    let chunks: Vec<Vec<char>> = text
        .split_whitespace()
        .map(|chunk| chunk.chars().collect())
        .collect();
    let mut words = Vec::new();
    for (at, chunk) in chunks.iter().enumerate() {
        let next = chunks.get(at + 1).and_then(|next| next.first()).copied();
        Cutter {
            chunk,
            next,
            words: &mut words,
        }
        .cut();
    }
    words
}

/// Words as rouge-score makes them without stemming: runs of ASCII letters and digits, lower case.
pub fn alphanumeric(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Keep their full stop.
const ABBREVIATIONS: [&str; 31] = [
    "dr", "mr", "mrs", "ms", "st", "jr", "sr", "prof", "vs", "inc", "dept", "co", "corp", "ltd",
    "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "mon",
    "tue", "wed", "thu", "fri",
];

/// Keep their full stop before a number.
const NUMBERED: [&str; 2] = ["no", "fig"];

/// Cut off the word before them.
const CLITICS: [&str; 6] = ["s", "re", "ve", "ll", "d", "m"];

struct Cutter<'a> {
    /// A text between blanks.
    chunk: &'a [char],
    /// What follows behind the blank.
    next: Option<char>,
    words: &'a mut Vec<String>,
}

impl Cutter<'_> {
    fn cut(&mut self) {
        let mut at = 0;
        while at < self.chunk.len() {
            at = self.token(at);
        }
    }

    fn at(&self, at: usize) -> Option<char> {
        self.chunk.get(at).copied()
    }

    fn digit(&self, at: usize) -> bool {
        self.at(at).is_some_and(|c| c.is_ascii_digit())
    }

    fn inner(&self, at: usize) -> bool {
        self.at(at).is_some_and(|c| c.is_alphanumeric() || c == '_')
    }

    fn take(&mut self, from: usize, to: usize) -> usize {
        self.words.push(self.chunk[from..to].iter().collect());
        to
    }

    /// Takes what begins at `at`; returns where the next begins.
    fn token(&mut self, at: usize) -> usize {
        let first = self.chunk[at];
        let bracket = match first {
            '(' => "-lrb-",
            ')' => "-rrb-",
            '[' => "-lsb-",
            ']' => "-rsb-",
            '{' => "-lcb-",
            '}' => "-rcb-",
            _ => "",
        };
        if !bracket.is_empty() {
            self.words.push(bracket.into());
            return at + 1;
        }
        let signed = matches!(first, '+' | '-') && at == 0 && self.digit(1);
        if self.digit(at) || signed || first == '.' && self.digit(at + 1) {
            return self.number(at);
        }
        match first {
            '\'' => self.apostrophe(at),
            '"' | '`' | '.' | ',' | ';' | ':' | '?' | '!' | '-' | '“' | '”' | '‘' | '…' | '–'
            | '—' => at + 1,
            '*' => {
                let stars = self.chunk[at..].iter().take_while(|c| **c == '*').count();
                self.take(at, at + stars)
            }
            _ if self.inner(at) => self.word(at),
            _ => self.take(at, at + 1),
        }
    }

    /// A number, and what belongs to it without a blank: `5mm`, but `5.5 mm`.
    fn number(&mut self, from: usize) -> usize {
        let mut to = from + 1;
        let mut pointed = self.chunk[from] == '.';
        loop {
            if self.digit(to) {
                to += 1;
            } else if matches!(self.at(to), Some('.' | ',' | ':')) && self.digit(to + 1) {
                pointed |= self.chunk[to] != ',';
                to += 2;
            } else {
                break;
            }
        }
        if pointed && self.inner(to) {
            return self.take(from, to);
        }
        let to = self.joined(to);
        self.take(from, to)
    }

    /// The end of a word whose beginning ends at `to`: letters, digits, and what hyphens and slashes join.
    fn joined(&self, mut to: usize) -> usize {
        loop {
            if self.inner(to) {
                to += 1;
            } else if matches!(self.at(to), Some('-' | '/')) && self.inner(to + 1) {
                to += 2;
            } else {
                return to;
            }
        }
    }

    fn word(&mut self, from: usize) -> usize {
        // `p.m.`, `e.g.`
        let mut dotted = from;
        while self.at(dotted).is_some_and(char::is_alphabetic) && self.at(dotted + 1) == Some('.') {
            dotted += 2;
        }
        if dotted >= from + 4 && !self.inner(dotted) {
            return self.take(from, dotted);
        }
        let to = self.joined(from);
        let word: String = self.chunk[from..to].iter().collect();
        if word == "cannot" {
            self.words.extend(["can".into(), "not".into()]);
            return to;
        }
        if self.at(to) == Some('.') {
            let after = self.at(to + 1).or(self.next);
            let numbered =
                NUMBERED.contains(&word.as_str()) && after.is_some_and(|c| c.is_ascii_digit());
            if numbered || ABBREVIATIONS.contains(&word.as_str()) {
                return self.take(from, to + 1);
            }
        }
        if self.at(to) == Some('\'') {
            let negated = word.ends_with('n') && word.len() > 1 && self.at(to + 1) == Some('t');
            if negated && !self.inner(to + 2) {
                self.words.push(word[..word.len() - 1].into());
                self.words.push("n't".into());
                return to + 2;
            }
            if self.clitic(to).is_none() && self.inner(to + 1) {
                let to = self.joined(to + 1);
                return self.take(from, to);
            }
        }
        self.words.push(word);
        to
    }

    /// Where a clitic that begins with this apostrophe ends.
    fn clitic(&self, at: usize) -> Option<usize> {
        let end = self.joined(at + 1);
        let rest: String = self.chunk[at + 1..end].iter().collect();
        CLITICS.contains(&rest.as_str()).then_some(end)
    }

    fn apostrophe(&mut self, at: usize) -> usize {
        match self.clitic(at) {
            Some(end) if !self.words.is_empty() => self.take(at, end),
            _ => at + 1,
        }
    }
}
