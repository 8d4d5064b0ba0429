//! What a run can measure, part by part, so that one of them can be had alone.
//!
//! The names are the report's own.

use clap::ValueEnum;

/// A part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Part {
    /// What the hardware can do at most.
    Machine,
    /// How near one stream comes to that, and the time of a step outside the model (measures the machine).
    Reached,
    /// Two questions about one image.
    SecondQuestion,
    /// The base alone, by streams at once.
    Streams,
    /// The most streams, by distinct adapters among them.
    Adapters,
    /// Sixteen adapters beside the base alone, in pairs.
    AdaptersOverBase,
    /// Adapters brought back into the bank.
    BringingBack,
    /// Many adapters in the bank beside few, in pairs.
    Resident,
    /// Adapters in the registry.
    Registered,
    /// Adapters published while answers stream.
    Publishing,
}

impl Part {
    /// Those that a server shows from outside.
    const FROM_OUTSIDE: [Self; 5] = [
        Self::Machine,
        Self::SecondQuestion,
        Self::Streams,
        Self::Adapters,
        Self::AdaptersOverBase,
    ];

    /// As the report and the command line call it.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The parts that were asked for; all of them where nobody chose.
#[derive(Clone, Debug)]
pub struct Parts(Vec<Part>);

impl Parts {
    /// `only`: empty for all.
    pub fn new(only: &[Part]) -> Self {
        Self(only.to_vec())
    }

    /// Whether a part is to be measured.
    pub fn wants(&self, part: Part) -> bool {
        self.0.is_empty() || self.0.contains(&part)
    }

    /// Whether some are left out by choice.
    pub fn are_chosen(&self) -> bool {
        !self.0.is_empty()
    }

    /// Chosen parts that need the inside of an engine.
    pub fn needing_the_inside(&self) -> Vec<String> {
        let inside = |part: &&Part| !Part::FROM_OUTSIDE.contains(part);
        self.0
            .iter()
            .filter(inside)
            .map(|part| part.name())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_chose_is_everything() {
        assert!(Parts::new(&[]).wants(Part::Resident));
        let chosen = Parts::new(&[Part::Machine, Part::Publishing]);
        assert!(chosen.wants(Part::Publishing) && !chosen.wants(Part::Resident));
        assert_eq!(chosen.needing_the_inside(), ["publishing"]);
    }

    #[test]
    fn the_names_are_the_fields_of_the_report() {
        let report = serde_json::to_value(crate::cli::bench::report::Report::of("x")).unwrap();
        for part in Part::value_variants() {
            assert!(report.get(part.name()).is_some(), "{part:?}");
        }
    }
}
