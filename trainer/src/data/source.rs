//! Data sets as a command line names them: `FOLDER`, or `slake:FOLDER` where the layout is to be
//! named. A text enters, a [`DataSet`] leaves. It must not know what is in the layouts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::intake::{Intake, Options};
use super::readers::{READERS, Reader, named};
use super::{DataError, DataSet};

/// A set on disk: its folder (or its only file), and its layout if that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The layout's name, one of [`READERS`]; without it, the files decide.
    pub format: Option<&'static str>,
    pub path: PathBuf,
}

impl Source {
    /// Reads the set.
    pub fn read(&self, options: &Options) -> Result<DataSet, DataError> {
        let (reader, root) = self.find()?;
        let mut intake = Intake::new(options, reader.about());
        reader.read(&root, &mut intake)?;
        intake.finish()
    }

    /// The reader of the set, and where in the folder the set begins.
    fn find(&self) -> Result<(&'static dyn Reader, PathBuf), DataError> {
        std::fs::metadata(&self.path).map_err(|source| DataError::Read {
            path: self.path.display().to_string(),
            source,
        })?;
        if let Some(reader) = self.format.and_then(named) {
            let about = reader.about();
            let wrong = || DataError::Layout {
                folder: self.path.display().to_string(),
                format: about.format,
                wanted: about.files,
            };
            return Ok((reader, reader.root(&self.path).ok_or_else(wrong)?));
        }
        let mut fitting = READERS
            .iter()
            .filter_map(|reader| Some((*reader, reader.root(&self.path)?)));
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one),
            (None, _) if self.has_arrow() => Err(self.unrecognised(
                "holds Arrow files, which are not read: write the set as Parquet (`Dataset.to_parquet`)",
            )),
            (None, _) => Err(self.unrecognised("is in no layout that is known")),
            (Some((one, _)), Some((other, _))) => Err(self.unrecognised(&format!(
                "could be `{}` or `{}`",
                one.about().format,
                other.about().format
            ))),
        }
    }

    /// Whether Hugging Face's `save_to_disk` wrote the folder, or a split of it.
    fn has_arrow(&self) -> bool {
        let known = ["dataset_dict.json", "dataset_info.json"];
        known.iter().any(|name| self.path.join(name).is_file())
    }

    fn unrecognised(&self, problem: &str) -> DataError {
        DataError::Unrecognised {
            folder: self.path.display().to_string(),
            problem: problem.into(),
            known: READERS.map(|reader| reader.about().format).join(", "),
        }
    }
}

impl FromStr for Source {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let wrong = || DataError::Source {
            got: text.into(),
            want: format!(
                "FOLDER or FORMAT:FOLDER, FORMAT one of {}",
                READERS.map(|reader| reader.about().format).join(", ")
            ),
        };
        let (format, path) = match text.split_once(':') {
            // A folder's own name may have a colon in it.
            Some(_) if Path::new(text).exists() => (None, text),
            Some((format, path)) => (Some(named(format).ok_or_else(wrong)?.about().format), path),
            None => (None, text),
        };
        if path.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            format,
            path: path.into(),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.format {
            write!(f, "{format}:")?;
        }
        write!(f, "{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::Folder;

    #[test]
    fn sets_are_named_by_folder_and_perhaps_layout() {
        let source: Source = "vqa-rad:/data/VQA RAD".parse().unwrap();
        assert_eq!(source.format, Some("vqa-rad"));
        assert_eq!(source.path, Path::new("/data/VQA RAD"));
        assert_eq!(source.to_string(), "vqa-rad:/data/VQA RAD");
        let plain: Source = "/data/slake".parse().unwrap();
        assert_eq!(
            (plain.format, plain.to_string()),
            (None, "/data/slake".into())
        );
        for bad in ["slake:", "other:/data", ""] {
            let error = bad.parse::<Source>().unwrap_err().to_string();
            assert!(
                error.contains("FORMAT:FOLDER, FORMAT one of slake, "),
                "{error}"
            );
        }
    }

    #[test]
    fn a_folder_that_fits_no_layout_or_another_is_refused() {
        let folder = Folder::new();
        folder.write("readme.txt", "nothing");
        let refuse = |format: &str| {
            let source: Source = format!("{format}{}", folder.path().display())
                .parse()
                .unwrap();
            source.read(&Options::default()).unwrap_err().to_string()
        };
        let error = refuse("");
        assert!(error.contains("is in no layout that is known"), "{error}");
        let error = refuse("slake:");
        assert!(
            error.contains("not in the layout `slake`, which has train.json"),
            "{error}"
        );
        folder
            .write("VQA_RAD Dataset Public.json", "[]")
            .write("own.jsonl", "");
        let error = refuse("");
        assert!(error.contains("could be `vqa-rad` or `jsonl`"), "{error}");
        let arrow = Folder::new();
        arrow.write("dataset_dict.json", "{}");
        let error = arrow
            .read_with(&Options::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("write the set as Parquet"), "{error}");
        let gone: Source = "/nowhere/at/all".parse().unwrap();
        let error = gone.read(&Options::default()).unwrap_err().to_string();
        assert_eq!(error, "cannot read /nowhere/at/all");
    }

    #[test]
    fn no_two_layouts_have_the_same_name() {
        let mut names = READERS.map(|reader| reader.about().format).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), READERS.len());
    }
}
