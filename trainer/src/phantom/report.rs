//! Reports. In: a scene and a wording; or a text. Out: the report's text; or the findings that the
//! text states. It knows no image and no model.

use serde::{Deserialize, Serialize};

use super::language::{
    COUNTS, Meaning, Register, kind_word, meaning, normalise, side_word, size_word, zone_word,
};
use super::style::{Attributes, Closing, Form, Nouns, Opening, Order, Sequence};
use super::{Finding, Kind, Scene, Style};

/// Everything that decides a report's words besides the scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wording {
    /// A combination of the factors of pre-training.
    Style(Style),
    /// Sentences that pre-training never has, of words that it has.
    Template,
    /// Sentences of words that pre-training never has: beyond what norms can teach.
    Foreign,
}

/// Writes the report of a scene. Its text is in normal form (see
/// [`normalise`]).
pub fn render(scene: &Scene, wording: Wording) -> String {
    match wording {
        Wording::Style(style) => styled(scene, style),
        Wording::Template => template(scene),
        Wording::Foreign => foreign(scene),
    }
}

fn styled(scene: &Scene, style: Style) -> String {
    let opening = match style.opening {
        Opening::Bare => None,
        Opening::Titled => Some("findings :"),
        Opening::Headed => Some("chest film :"),
    };
    let closing = match style.closing {
        Closing::Open => None,
        Closing::Ended => Some("no other finding ."),
        Closing::Signed => Some("end of report ."),
    };
    let mut phrases: Vec<String> = scene
        .findings
        .iter()
        .map(|one| phrase(*one, style))
        .collect();
    if style.sequence == Sequence::Reversed {
        phrases.reverse();
    }
    let body = if phrases.is_empty() {
        match style.nouns {
            Nouns::Formal => "no finding .".to_owned(),
            Nouns::Plain => "all clear .".to_owned(),
        }
    } else {
        match style.form {
            Form::Sentences => format!("we see {} .", phrases.join(" . we see ")),
            Form::Notes => format!("{} .", phrases.join(" . ")),
            Form::List => format!("{} .", phrases.join(" , ")),
        }
    };
    let parts = [opening, Some(body.as_str()), closing];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// A finding with its attributes: `small left upper nodule`, or exactly the reverse.
fn phrase(finding: Finding, style: Style) -> String {
    let nouns = match style.nouns {
        Nouns::Formal => Register::First,
        Nouns::Plain => Register::Second,
    };
    let attributes = match style.attributes {
        Attributes::Full => Register::First,
        Attributes::Brief => Register::Second,
    };
    let mut words: Vec<&str> = [
        finding.size.map(|size| size_word(size, attributes)),
        finding.side.map(|side| side_word(side, attributes)),
        finding.zone.map(|zone| zone_word(zone, attributes)),
        Some(kind_word(finding.kind, nouns)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if style.order == Order::After {
        words.reverse();
    }
    words.join(" ")
}

fn template(scene: &Scene) -> String {
    let register = Register::First;
    let mut parts = vec![format!(
        "count : {} .",
        COUNTS[scene.findings.len().min(COUNTS.len() - 1)]
    )];
    for finding in &scene.findings {
        parts.push(format!("the {} is", kind_word(finding.kind, register)));
        let zone = finding
            .zone
            .map(|zone| format!("in the {} zone", zone_word(zone, register)));
        let side = finding
            .side
            .map(|side| format!("on the {} side", side_word(side, register)));
        let size = finding
            .size
            .map(|size| format!("and {} in size", size_word(size, register)));
        parts.extend([zone, side, size].into_iter().flatten());
        let end = if finding.kind == Kind::Cardiomegaly {
            "there ."
        } else {
            "."
        };
        parts.push(end.to_owned());
    }
    parts.join(" ")
}

fn foreign(scene: &Scene) -> String {
    let register = Register::Foreign;
    let mut text = "befund :".to_owned();
    for finding in &scene.findings {
        let words = [
            Some(kind_word(finding.kind, register)),
            finding.side.map(|side| side_word(side, register)),
            finding.zone.map(|zone| zone_word(zone, register)),
            finding.size.map(|size| size_word(size, register)),
            Some("."),
        ];
        for word in words.into_iter().flatten() {
            text.push(' ');
            text += word;
        }
    }
    if scene.findings.is_empty() {
        text += " kein .";
    }
    text + " ende ."
}

/// Reads the findings of a report in any wording: within one clause all attributes belong to its
/// finding. Of attributes named twice the last counts; a clause without a finding says nothing.
pub fn parse(text: &str) -> Vec<Finding> {
    let text = normalise(text);
    let clauses = text.split([',', '.', ':', ';']);
    let mut findings: Vec<Finding> = clauses.filter_map(parse_clause).collect();
    findings.sort_unstable();
    findings.dedup();
    findings
}

fn parse_clause(clause: &str) -> Option<Finding> {
    let meanings = || clause.split_whitespace().filter_map(meaning);
    let kind = meanings().find_map(|one| match one {
        Meaning::Kind(kind) => Some(kind),
        _ => None,
    })?;
    let mut finding = Finding::bare(kind);
    for one in meanings() {
        match one {
            Meaning::Side(side) => finding.side = Some(side),
            Meaning::Size(size) => finding.size = Some(size),
            Meaning::Zone(zone) => finding.zone = Some(zone),
            Meaning::Kind(_) => {}
        }
    }
    Some(finding)
}

/// Whether a text is word for word a report that the wording could have produced, whatever its
/// findings: form only, no truth.
pub fn is_well_formed(text: &str, wording: Wording) -> bool {
    let scene = Scene::from_findings(parse(text));
    scene.findings.len() < COUNTS.len()
        && scene.findings.iter().all(Finding::is_complete)
        && render(&scene, wording) == normalise(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::language::VOCABULARY;
    use crate::phantom::style::HOUSE;
    use crate::phantom::{Side, Size, Zone};

    fn wordings() -> Vec<Wording> {
        let styles = Style::all().into_iter().map(Wording::Style);
        styles
            .chain([Wording::Template, Wording::Foreign])
            .collect()
    }

    #[test]
    fn every_wording_reads_back_to_its_scene() {
        for wording in wordings() {
            for seed in 0..60 {
                let scene = Scene::sample(seed);
                let text = render(&scene, wording);
                assert_eq!(parse(&text), scene.findings, "{text}");
                assert!(is_well_formed(&text, wording), "{text}");
                assert_eq!(normalise(&text), text);
                assert!(
                    text.split(' ').all(|word| VOCABULARY.contains(&word)),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn wordings_read_as_shown_here() {
        let nodule = Finding {
            kind: Kind::Nodule,
            side: Some(Side::Left),
            size: Some(Size::Small),
            zone: Some(Zone::Upper),
        };
        let scene = Scene::from_findings([Finding::bare(Kind::Cardiomegaly), nodule]);
        let text = |wording| render(&scene, wording);
        assert_eq!(
            text(Wording::Style(HOUSE)),
            "chest film : bigheart , spot apical lt minor . end of report ."
        );
        assert_eq!(
            text(Wording::Template),
            "count : two . the nodule is in the upper zone on the left side and small in size . \
             the cardiomegaly is there ."
        );
        assert_eq!(
            text(Wording::Foreign),
            "befund : herd links oben klein . kardiomegalie . ende ."
        );
        let empty = Scene::default();
        assert_eq!(render(&empty, Wording::Foreign), "befund : kein . ende .");
        assert_eq!(
            render(&empty, Wording::Style(HOUSE)),
            "chest film : all clear . end of report ."
        );
    }

    #[test]
    fn a_report_is_well_formed_in_its_own_wording_only() {
        let scene = Scene::sample(4);
        assert!(scene.findings.len() > 1);
        for own in wordings() {
            let text = render(&scene, own);
            let fitting = wordings()
                .into_iter()
                .filter(|other| is_well_formed(&text, *other));
            assert_eq!(fitting.count(), 1, "{text}");
        }
    }

    #[test]
    fn broken_reports_are_read_as_far_as_they_go() {
        let effusion = Finding {
            side: Some(Side::Left),
            ..Finding::bare(Kind::Effusion)
        };
        assert_eq!(parse("left effusion. left left"), [effusion]);
        assert_eq!(parse("Effusion LEFT, effusion left"), [effusion]);
        assert!(parse("yes no 1 2 ?").is_empty());
        assert!(!is_well_formed("left effusion .", Wording::Style(HOUSE)));
    }
}
