//! Measures of answers and reports against the truth. In: texts, confidences. Out: numbers, and their
//! intervals. It knows no model, no files and no sets.
//!
//! - [`llava_med`]: what LLaVA-Med's evaluation script computes, its quirks included.
//! - [`words`]: texts as words; [`bleu`], [`rouge`], [`meteor`], [`cider`]: reports, as the reference
//!   programs compute them.
//! - [`interval`]: any of these over resampled images, alone and as the difference of two runs.
//! - [`calibration`]: how far confidences can be trusted, a temperature and a threshold for them.

pub mod bleu;
pub mod calibration;
pub mod cider;
pub mod interval;
pub mod llava_med;
pub mod meteor;
pub mod rouge;
pub mod words;

#[cfg(test)]
mod goldens;
