//! Bases from folders, ready to be tuned or measured. In: a folder, a method or a file of what one
//! learnt. Out: a frozen base and what stands around it. It must not know commands.

use std::path::Path;

use anyhow::{Context, Result};
use norma::base::{Base, OpenOptions, WeightType};
use norma::model::ops::Kernels;
use norma::model::parameters::Parameters;
use norma::preprocess::{ChatPrompt, ClipPreprocess, TextTokenizer};

use crate::adapter::Surroundings;
use crate::frozen::FrozenBase;
use crate::methods::{Choice, trained};

/// A base to train on, its weights in f32, built for a method if there is one.
pub fn to_train(folder: &Path, choice: Option<&Choice>) -> Result<(FrozenBase, Surroundings)> {
    to_train_as(folder, WeightType::F32, choice)
}

/// The same with its frozen weights held as a server holds them.
pub fn to_train_as(
    folder: &Path,
    weights: WeightType,
    choice: Option<&Choice>,
) -> Result<(FrozenBase, Surroundings)> {
    let base = without_surroundings(folder, weights, choice)?;
    Ok((base, surroundings(folder)?))
}

/// A base alone, of a folder that need not say how images and texts are prepared.
pub fn without_surroundings(
    folder: &Path,
    weights: WeightType,
    choice: Option<&Choice>,
) -> Result<FrozenBase> {
    let opened = open_folder(folder)?;
    let kernels = Kernels::for_device(opened.checkpoint().device());
    build(&opened, &opened.parameters(kernels, weights)?, choice)
}

/// A base to measure: its weights as a server holds them.
pub fn to_measure(folder: &Path, weights: WeightType) -> Result<(FrozenBase, Surroundings)> {
    to_train_as(folder, weights, None)
}

/// A base with what `file` says was learnt, and its norm row.
pub fn with_trained(
    folder: &Path,
    weights: WeightType,
    file: &Path,
) -> Result<(FrozenBase, Surroundings, Vec<f32>)> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let fits = || format!("{} cannot be put into this base", file.display());
    let choice = trained::header(&bytes).with_context(fits)?.choice;
    let opened = open_folder(folder)?;
    let kernels = Kernels::for_device(opened.checkpoint().device());
    let parameters = opened.parameters(kernels, weights)?;
    let base = build(&opened, &parameters, Some(&choice))?;
    let row = trained::restore(&base, &bytes).with_context(fits)?;
    Ok((base, surroundings(folder)?, row))
}

fn open_folder(folder: &Path) -> Result<Base> {
    Base::open(folder, &OpenOptions::default())
        .with_context(|| format!("cannot open the base {}", folder.display()))
}

fn build(
    opened: &Base,
    parameters: &dyn Parameters,
    choice: Option<&Choice>,
) -> Result<FrozenBase> {
    let (config, row, digest) = (opened.config(), opened.row()?, opened.digest());
    match choice {
        None => FrozenBase::new(config, parameters, row, digest),
        Some(choice) => FrozenBase::with_method(config, parameters, row, digest, choice),
    }
}

fn surroundings(folder: &Path) -> Result<Surroundings> {
    Ok(Surroundings {
        preprocess: ClipPreprocess::from_folder(folder)?,
        chat: ChatPrompt::from_folder(folder)?,
        tokenizer: TextTokenizer::from_folder(folder, None)?,
    })
}
