//! Data sets as a command line names them: `slake:FOLDER`, `vqa-rad:FOLDER`. A text enters, a
//! [`DataSet`] leaves. It must not know what is in the layouts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{DataError, DataSet, slake, vqa_rad};

/// A layout that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Slake,
    VqaRad,
}

impl Layout {
    const ALL: [Self; 2] = [Self::Slake, Self::VqaRad];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slake => "slake",
            Self::VqaRad => "vqa-rad",
        }
    }

    /// How to name and cite the set, and its licence as its makers state it.
    pub fn citation(self) -> &'static str {
        match self {
            Self::Slake => "SLAKE (Liu et al., ISBI 2021), CC BY 4.0",
            Self::VqaRad => "VQA-RAD (Lau et al., Sci Data 5:180251, 2018), CC0 1.0",
        }
    }
}

/// A set on disk: its layout and its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub layout: Layout,
    pub folder: PathBuf,
}

impl Source {
    /// Reads the set; of SLAKE, the rows in English.
    pub fn read(&self) -> Result<DataSet, DataError> {
        match self.layout {
            Layout::Slake => slake::read(&self.folder, "en"),
            Layout::VqaRad => vqa_rad::read(&self.folder),
        }
    }
}

impl FromStr for Source {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let known = text.split_once(':').and_then(|(name, folder)| {
            let layout = Layout::ALL
                .into_iter()
                .find(|layout| layout.name() == name)?;
            (!folder.is_empty()).then(|| Self {
                layout,
                folder: folder.into(),
            })
        });
        known.ok_or_else(|| DataError::Source {
            got: text.into(),
            want: Layout::ALL
                .map(|layout| format!("`{}:FOLDER`", layout.name()))
                .join(" or "),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.layout.name(), self.folder.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named_by_layout_and_folder() {
        let source: Source = "vqa-rad:/data/VQA RAD".parse().unwrap();
        assert_eq!(
            source,
            Source {
                layout: Layout::VqaRad,
                folder: "/data/VQA RAD".into()
            }
        );
        assert_eq!(source.to_string(), "vqa-rad:/data/VQA RAD");
        for bad in ["slake", "slake:", "other:/data", ""] {
            let error = bad.parse::<Source>().unwrap_err().to_string();
            assert!(
                error.contains("`slake:FOLDER` or `vqa-rad:FOLDER`"),
                "{error}"
            );
        }
    }
}
