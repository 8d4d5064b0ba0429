//! What tests write in place of real sets: files in a folder that goes when the test ends, and
//! pictures of a few pixels.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};
use tempfile::TempDir;

use super::intake::Options;
use super::source::Source;
use super::{AnswerType, DataError, DataSet, Image, Place, ProblemKind, Record, Split};

/// A folder of made-up files.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file and the folders above it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Reads the folder as a set whose layout is to be found out.
    pub(crate) fn read(&self) -> DataSet {
        self.read_with(&Options::default()).unwrap()
    }

    pub(crate) fn read_with(&self, options: &Options) -> Result<DataSet, DataError> {
        let source: Source = self.path().to_str().unwrap().parse().unwrap();
        source.read(options)
    }
}

/// A small picture; other seeds give others.
pub(crate) fn picture(seed: u8) -> RgbImage {
    RgbImage::from_fn(9, 6, |x, y| {
        image::Rgb([seed.wrapping_mul(37), x as u8 * 20, y as u8 * 30])
    })
}

pub(crate) fn png(seed: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture(seed)
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// A record made up for a test.
pub(crate) fn record(image: impl Into<PathBuf>, question: &str, answer: &str) -> Record {
    let image = image.into();
    Record {
        id: "0".into(),
        group: image.file_name().unwrap().to_string_lossy().into_owned(),
        images: vec![Image::from(image)],
        question: question.into(),
        answer: answer.into(),
        answer_type: AnswerType::of_answer(answer),
        split: Split::Train,
        language: "en".into(),
        place: Place {
            file: Path::new("made-up.json").into(),
            index: 0,
            line: Some(1),
        },
    }
}

/// What a set's problems are, with the rows that they are about.
pub(crate) fn faults(set: &DataSet) -> Vec<(usize, ProblemKind)> {
    let problems = set.problems.iter();
    problems
        .map(|problem| (problem.place.index, problem.kind.clone()))
        .collect()
}

/// The records' numbers in a split.
pub(crate) fn ids(set: &DataSet, split: Split) -> Vec<&str> {
    set.split(split).map(|record| record.id.as_str()).collect()
}
