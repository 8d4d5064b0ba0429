//! Python pickles that hold plain data. In: a file. Out: its rows: lists, tuples, dictionaries, texts,
//! numbers, booleans and `None`. A pickle is a program; every instruction that could import, construct
//! or call anything is refused, so reading one runs nothing. It must not know what a row holds.
//!
//! The instructions are those of Python's `Lib/pickletools.py`, protocols 0 to 5.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::{DataError, Place, Row};

/// The rows of a pickled list of dictionaries.
pub(in crate::data) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let bytes = super::bytes(path)?;
    let value = parse(&bytes).map_err(|problem| DataError::format(path, problem))?;
    let Value::Array(values) = value else {
        return Err(DataError::format(path, "the pickle must be a list of rows"));
    };
    let file: std::sync::Arc<Path> = path.into();
    let rows = values.into_iter().enumerate().map(|(index, value)| {
        let Value::Object(row) = value else {
            let problem = format!("row {index} must be a dictionary");
            return Err(DataError::format(path, problem));
        };
        let place = Place {
            file: file.clone(),
            index,
            line: None,
        };
        Ok((place, row))
    });
    rows.collect()
}

/// Why a pickle was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum PickleError {
    #[error(
        "byte {at} of the pickle is the instruction 0x{code:02x}, which could import or run something; \
         only lists, dictionaries, texts and numbers are read"
    )]
    Instruction { at: usize, code: u8 },
    #[error("the pickle ends in the middle")]
    Truncated,
    #[error("the pickle is corrupt before byte {at}: {what}")]
    Corrupt { at: usize, what: &'static str },
    #[error("the pickle's data is nested too deeply, or unfolds to far more than its file holds")]
    Unfolds,
}

/// A value; containers name their parts by place, as parts can be shared and filled later.
enum Node {
    Plain(Value),
    List(Vec<usize>),
    Dict(Vec<(usize, usize)>),
}

/// Containers within containers.
const MAX_DEPTH: usize = 16;
/// Bytes that a byte of the file may unfold to, by sharing.
const MAX_UNFOLDING: usize = 64;

fn parse(bytes: &[u8]) -> Result<Value, PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    let mut budget = bytes.len() * MAX_UNFOLDING;
    machine.unfold(root, 0, &mut budget)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<usize>,
    /// Lengths that the stack had at its open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, usize>,
}

impl Machine<'_> {
    /// Runs to the end and returns the place of the result.
    fn run(&mut self) -> Result<usize, PickleError> {
        loop {
            let at = self.at;
            let code = self.take(1)?[0];
            match code {
                b'.' => return self.pop(),
                // Frames and the protocol's number say nothing about the data.
                0x80 => _ = self.take(1)?,
                0x95 => _ = self.take(8)?,
                b'(' => self.marks.push(self.stack.len()),
                b'0' => _ = self.pop()?,
                b'1' => _ = self.down_to_mark()?,
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Node::Plain(Value::Null)),
                0x88 => self.push(Node::Plain(true.into())),
                0x89 => self.push(Node::Plain(false.into())),
                b'I' | b'L' | b'F' | b'S' | b'V' => self.line_literal(code)?,
                b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(code)?,
                b'T' | b'U' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e => self.text(code)?,
                b']' | b')' | b'}' | b'l' | b't' | b'd' | 0x85..=0x87 => self.container(code)?,
                b'a' | b'e' | b's' | b'u' => self.fill(code)?,
                b'p' | b'q' | b'r' | 0x94 => self.remember(code)?,
                b'g' | b'h' | b'j' => self.recall(code)?,
                _ => return Err(PickleError::Instruction { at, code }),
            }
        }
    }

    /// Values that protocol 0 writes as a line of text.
    fn line_literal(&mut self, code: u8) -> Result<(), PickleError> {
        let line = self.line()?;
        let value: Option<Value> = match code {
            b'I' if line == "00" || line == "01" => Some((line == "01").into()),
            b'I' => line.parse::<i64>().ok().map(Into::into),
            b'L' => line
                .trim_end_matches('L')
                .parse::<i64>()
                .ok()
                .map(Into::into),
            b'F' => line.parse::<f64>().ok().map(Into::into),
            b'S' => quoted(&line).map(Into::into),
            _ => unescape(&line, b"u").map(Into::into),
        };
        let value = value.ok_or_else(|| self.corrupt("a literal that cannot be read"))?;
        self.push(Node::Plain(value));
        Ok(())
    }

    fn number(&mut self, code: u8) -> Result<(), PickleError> {
        let value: Value = match code {
            b'J' => i64::from(self.unsigned(4)? as u32 as i32).into(),
            b'K' => self.unsigned(1)?.into(),
            b'M' => self.unsigned(2)?.into(),
            b'G' => {
                let bits = self.take(8)?;
                f64::from_be_bytes(bits.try_into().expect("eight bytes were taken")).into()
            }
            _ => {
                let length = self.unsigned(if code == 0x8a { 1 } else { 4 })? as usize;
                if length > 8 {
                    return Err(self.corrupt("a number that is too large"));
                }
                let number = self.unsigned(length)?;
                let unused = 64 - 8 * length as u32;
                let shift = |number: u64| number.checked_shl(unused).unwrap_or(0) as i64;
                shift(number).checked_shr(unused).unwrap_or(0).into()
            }
        };
        self.push(Node::Plain(value));
        Ok(())
    }

    /// Texts with their length before them. Python 2's texts are bytes: what is no UTF-8 in them becomes
    /// U+FFFD.
    fn text(&mut self, code: u8) -> Result<(), PickleError> {
        let width = match code {
            b'U' | 0x8c | b'C' => 1,
            b'T' | b'X' | b'B' => 4,
            _ => 8,
        };
        let length = self.unsigned(width)?;
        let length = usize::try_from(length).map_err(|_| PickleError::Truncated)?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Plain(text.into()));
        Ok(())
    }

    fn container(&mut self, code: u8) -> Result<(), PickleError> {
        let node = match code {
            b']' | b')' => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b'l' | b't' => Node::List(self.down_to_mark()?),
            b'd' => Node::Dict(self.pairs()?),
            _ => {
                let length = usize::from(code - 0x84);
                let from = self.stack.len().checked_sub(length);
                let from = from.ok_or_else(|| self.corrupt("too few values"))?;
                Node::List(self.stack.split_off(from))
            }
        };
        self.push(node);
        Ok(())
    }

    /// Puts values into the container below them.
    fn fill(&mut self, code: u8) -> Result<(), PickleError> {
        let (values, pairs) = match code {
            b'a' => (vec![self.pop()?], Vec::new()),
            b'e' => (self.down_to_mark()?, Vec::new()),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                (Vec::new(), vec![(key, value)])
            }
            _ => (Vec::new(), self.pairs()?),
        };
        let top = self.top()?;
        match (&mut self.nodes[top], code) {
            (Node::List(list), b'a' | b'e') => list.extend(values),
            (Node::Dict(dict), b's' | b'u') => dict.extend(pairs),
            _ => return Err(self.corrupt("a container of another kind")),
        }
        Ok(())
    }

    fn remember(&mut self, code: u8) -> Result<(), PickleError> {
        let name = match code {
            0x94 => self.memo.len() as u64,
            _ => self.memo_name(code == b'p', code == b'q')?,
        };
        let top = self.top()?;
        self.memo.insert(name, top);
        Ok(())
    }

    fn recall(&mut self, code: u8) -> Result<(), PickleError> {
        let name = self.memo_name(code == b'g', code == b'h')?;
        let place = self.memo.get(&name).copied();
        let place = place.ok_or_else(|| self.corrupt("a value that was never remembered"))?;
        self.stack.push(place);
        Ok(())
    }

    fn memo_name(&mut self, as_line: bool, short: bool) -> Result<u64, PickleError> {
        if as_line {
            let line = self.line()?;
            let number = line.parse().ok();
            return number.ok_or_else(|| self.corrupt("a place that is no number"));
        }
        self.unsigned(if short { 1 } else { 4 })
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// A value above the innermost mark.
    fn pop(&mut self) -> Result<usize, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.corrupt("too few values"));
        }
        self.stack
            .pop()
            .ok_or_else(|| self.corrupt("too few values"))
    }

    fn top(&self) -> Result<usize, PickleError> {
        let top = self.stack.last().copied();
        top.ok_or_else(|| self.corrupt("too few values"))
    }

    /// The values above the innermost mark, which goes.
    fn down_to_mark(&mut self) -> Result<Vec<usize>, PickleError> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| self.corrupt("a mark is missing"))?;
        if mark > self.stack.len() {
            return Err(self.corrupt("too few values"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn pairs(&mut self) -> Result<Vec<(usize, usize)>, PickleError> {
        let values = self.down_to_mark()?;
        if values.len() % 2 != 0 {
            return Err(self.corrupt("a key without a value"));
        }
        Ok(values.chunks_exact(2).map(|two| (two[0], two[1])).collect())
    }

    fn take(&mut self, length: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(length).ok_or(PickleError::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(PickleError::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of at most eight bytes.
    fn unsigned(&mut self, bytes: usize) -> Result<u64, PickleError> {
        let taken = self.take(bytes)?;
        Ok(taken
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// A line; its bytes are Latin-1.
    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or(PickleError::Truncated)?;
        self.at += end + 1;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        Ok(line.iter().copied().map(char::from).collect())
    }

    fn corrupt(&self, what: &'static str) -> PickleError {
        PickleError::Corrupt { at: self.at, what }
    }

    /// The value at a place, with its parts in it.
    fn unfold(&self, place: usize, depth: usize, budget: &mut usize) -> Result<Value, PickleError> {
        let node = &self.nodes[place];
        let cost = match node {
            Node::Plain(Value::String(text)) => text.len() + 1,
            _ => 1,
        };
        *budget = budget.checked_sub(cost).ok_or(PickleError::Unfolds)?;
        if depth > MAX_DEPTH {
            return Err(PickleError::Unfolds);
        }
        match node {
            Node::Plain(value) => Ok(value.clone()),
            Node::List(parts) => {
                let parts = parts
                    .iter()
                    .map(|part| self.unfold(*part, depth + 1, budget));
                Ok(Value::Array(parts.collect::<Result<_, _>>()?))
            }
            Node::Dict(pairs) => {
                let mut dict = Map::new();
                for (key, value) in pairs {
                    let key = match self.unfold(*key, depth + 1, budget)? {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    dict.insert(key, self.unfold(*value, depth + 1, budget)?);
                }
                Ok(Value::Object(dict))
            }
        }
    }
}

/// The text of a Python 2 literal such as `'it\'s'`, which stands for bytes.
fn quoted(line: &str) -> Option<String> {
    let line = line.trim();
    let quote = line
        .chars()
        .next()
        .filter(|one| matches!(one, '\'' | '"'))?;
    let inner = line.strip_prefix(quote)?.strip_suffix(quote)?;
    let bytes: Vec<u8> = unescape(inner, b"\\'\"nrtx")?
        .chars()
        .map(|one| one as u8)
        .collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Resolves escapes of the kinds named; `u` stands for `\uXXXX` and `\UXXXXXXXX`.
fn unescape(text: &str, kinds: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let kind = rest.bytes().next()?;
        let known = kinds.contains(&kind) || kind == b'U' && kinds.contains(&b'u');
        if !known {
            out.push('\\');
            continue;
        }
        let digits = match kind {
            b'x' => 2,
            b'u' => 4,
            b'U' => 8,
            _ => 0,
        };
        let hex = rest.get(1..=digits)?;
        out.push(match kind {
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'x' | b'u' | b'U' => char::from_u32(u32::from_str_radix(hex, 16).ok()?)?,
            other => other as char,
        });
        rest = &rest[1 + digits..];
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests;
