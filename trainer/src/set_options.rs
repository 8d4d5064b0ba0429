//! How a command line names a data set, and what may be chosen about reading it.

#![expect(clippy::print_stdout, reason = "what a command says of its data")]

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use clap::{Args, ValueEnum};
use norma_trainer::data::deal::{By, Deal, Shares};
use norma_trainer::data::images::{self, Facts};
use norma_trainer::data::intake::{Options, Section};
use norma_trainer::data::source::Source;
use norma_trainer::data::{DataSet, Image, leaks};

/// Faults of a kind that are printed one by one before training.
const SHOWN: usize = 20;

/// A set that a command needs.
#[derive(Clone, Args)]
pub struct Set {
    /// A data set: its folder, or FORMAT:FOLDER to name the layout (slake, vqa-rad, data-rad, path-vqa,
    /// r2gen, openi, mimic-cxr, roco, parquet, jsonl).
    #[arg(long, value_name = "SET")]
    data: Source,
    #[command(flatten)]
    reading: Reading,
}

/// A set that a command can do without.
#[derive(Args)]
pub struct MaybeSet {
    /// A data set: its folder, or FORMAT:FOLDER to name the layout (slake, vqa-rad, data-rad, path-vqa,
    /// r2gen, openi, mimic-cxr, roco, parquet, jsonl). Without one, phantom films.
    #[arg(long, value_name = "SET")]
    data: Option<Source>,
    #[command(flatten)]
    reading: Reading,
}

impl MaybeSet {
    /// The set, if one was named.
    pub fn get(&self) -> Option<Set> {
        let reading = self.reading.clone();
        let data = self.data.clone()?;
        Some(Set { data, reading })
    }
}

/// What may be chosen about reading.
#[derive(Clone, Args)]
pub struct Reading {
    /// The layout, where it is not named before the folder.
    #[arg(long)]
    format: Option<String>,
    /// Refuse a set of which rows cannot be used; without it they are listed and left out.
    #[arg(long)]
    strict: bool,
    /// The language of sets that have several.
    #[arg(long, default_value = "en")]
    language: String,
    /// What of a report is learnt, where a set tells sections apart.
    #[arg(long, default_value = "findings")]
    section: SectionWord,
    /// Split the records anew, whatever split the set has. A set without one is split by group.
    #[arg(long)]
    split_by: Option<ByWord>,
    /// Shares of train, validation and test when records are split.
    #[arg(long, default_value = "80,10,10")]
    shares: Shares,
    /// Splits otherwise.
    #[arg(long, default_value_t = 0)]
    split_seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum SectionWord {
    Findings,
    Impression,
    Both,
}

/// What a new split keeps whole.
#[derive(Clone, Copy, ValueEnum)]
enum ByWord {
    /// Patients, studies or images, by the set's own names.
    Group,
    /// Images, whatever the set's names.
    Image,
}

impl Set {
    /// The set of a folder, read as usual.
    pub fn new(data: Source, reading: Reading) -> Self {
        Self { data, reading }
    }

    /// Whether rows that cannot be used are refused.
    pub fn is_strict(&self) -> bool {
        self.reading.strict
    }

    /// The set with the layout it was named to have.
    pub fn source(&self) -> Result<Source> {
        Ok(match &self.reading.format {
            Some(format) => format!("{format}:{}", self.data.path.display()).parse()?,
            None => self.data.clone(),
        })
    }

    /// Reads the set as its files say; nothing is decoded.
    pub fn read(&self) -> Result<DataSet> {
        let set = self.source()?.read(&self.options())?;
        if self.reading.strict {
            set.require_all()?;
        }
        Ok(set)
    }

    /// Reads the set and decodes its images; what cannot be decoded is left out and listed.
    pub fn read_images(&self) -> Result<(DataSet, BTreeMap<Image, Facts>)> {
        let mut set = self.read()?;
        let facts = images::check(&mut set);
        if self.reading.strict {
            set.require_all()?;
        }
        Ok((set, facts))
    }

    /// [`Self::read_images`], for training and measuring: what is wrong with the set is printed.
    pub fn read_checked(&self) -> Result<DataSet> {
        let (set, _) = self.read_images()?;
        for problem in set.problems.iter().take(SHOWN) {
            println!("{problem}");
        }
        let more = set.problems.len().saturating_sub(SHOWN);
        if more > 0 {
            println!("and {more} more; `norma-train inspect` lists their kinds");
        }
        for remark in set.to_know() {
            println!("{remark}");
        }
        for leak in leaks::of_groups(&set) {
            println!("{leak}");
        }
        Ok(set)
    }

    fn options(&self) -> Options {
        Options {
            language: self.reading.language.clone(),
            section: match self.reading.section {
                SectionWord::Findings => Section::Findings,
                SectionWord::Impression => Section::Impression,
                SectionWord::Both => Section::Both,
            },
            deal: Deal {
                by: self.reading.split_by.map(|by| match by {
                    ByWord::Group => By::Group,
                    ByWord::Image => By::Image,
                }),
                shares: self.reading.shares,
                seed: self.reading.split_seed,
            },
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}
