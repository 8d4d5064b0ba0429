//! An evaluation for people to read. In: a [`Run`]. Out: text. It must not know how anything in it was
//! found.

use std::fmt::{self, Display, Formatter, Write};

use super::run::{Against, Calibrated, Fitted, Run, Scored};
use super::scores::Name;
use crate::metrics::calibration::{Kept, Reliability};

impl Display for Run {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<38} {:>6}  {:<14} {:<14} {:>6} {:>6}  {:>8} {:>6}",
            "", "", "95 % by image", "Wilson", "n", "images", "majority", "blind"
        )?;
        for score in &self.scores {
            writeln!(f, "{}", row(score))?;
        }
        if let Some(calibration) = &self.calibration {
            write!(f, "{calibration}")?;
        }
        if let Some(against) = &self.against {
            write!(f, "{against}")?;
        }
        Ok(())
    }
}

fn row(score: &Scored) -> String {
    let Scored {
        name,
        estimate,
        wilson,
        majority,
        blind,
    } = score;
    let number = |value: f64| number(*name, value);
    let interval = |low, high| format!("[{}, {}]", number(low), number(high));
    format!(
        "{:<38} {:>6}  {:<14} {:<14} {:>6} {:>6}  {:>8} {:>6}",
        name.about(),
        number(estimate.value),
        interval(estimate.low, estimate.high),
        wilson
            .map(|[low, high]| interval(low, high))
            .unwrap_or_default(),
        estimate.n,
        estimate.clusters,
        number(majority.value),
        blind.map(|one| number(one.value)).unwrap_or_default(),
    )
    .trim_end()
    .to_owned()
}

/// Per cent of what lies between 0 and 1.
fn number(name: Name, value: f64) -> String {
    if name.is_fraction() {
        format!("{:.1}", 100.0 * value)
    } else {
        format!("{value:.3}")
    }
}

impl Display for Calibrated {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            temperature,
            reliability,
            kept,
        } = self;
        writeln!(
            f,
            "confidence at temperature {temperature:.2}: {reliability}"
        )?;
        for bin in reliability.bins.iter().filter(|bin| bin.n > 0) {
            writeln!(
                f,
                "  {:.1} to {:.1}: {:>5} answers, {:>5.1} % sure, {:>5.1} % right",
                bin.low,
                bin.high,
                bin.n,
                100.0 * bin.confidence,
                100.0 * bin.accuracy
            )?;
        }
        match kept {
            Some(kept) => writeln!(f, "abstention: {kept}"),
            None => Ok(()),
        }
    }
}

impl Display for Reliability {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "ECE {:.1} %, Brier {:.3}", 100.0 * self.ece, self.brier)
    }
}

impl Display for Kept {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            threshold,
            answered,
            n,
            right,
        } = self;
        let share = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        write!(
            f,
            "{answered} of {n} answers ({:.1} %) have a confidence of {threshold:.3} or more, {:.1} % of them are right",
            share(*answered, *n),
            share(*right, *answered)
        )
    }
}

impl Display for Fitted {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "at temperature 1: {}", self.before)?;
        writeln!(
            f,
            "at temperature {:.3}: {}",
            self.calibration.temperature, self.after
        )?;
        write!(f, "{}", self.kept)
    }
}

impl Display for Against {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "above {}, 95 % by image, the same images drawn of both:",
            self.earlier
        )?;
        for (name, difference) in &self.differences {
            let number = |value| {
                let mut text = number(*name, value);
                if value > 0.0 {
                    text.insert(0, '+');
                }
                text
            };
            let mut line = String::new();
            write!(
                line,
                "{:<38} {:>6}  [{}, {}]",
                name.about(),
                number(difference.value),
                number(difference.low),
                number(difference.high)
            )?;
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}
