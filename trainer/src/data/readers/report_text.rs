//! Sections of a report that is plain text. In: a report. Out: the text under a heading. It must not
//! know whose reports they are.

use crate::data::ProblemKind;
use crate::data::files::fields::clean;

/// The text of the first section that begins with a heading of this kind and is not blank. A heading is
/// the capital letters before the colon on a line (`FINDINGS:`, `FINDINGS AND IMPRESSION:`); a section
/// ends at the next.
pub(super) fn section(report: &str, heading: &'static str) -> Result<String, ProblemKind> {
    let mut found = false;
    let mut parts: Vec<&str> = Vec::new();
    let mut inside = false;
    for line in report.lines() {
        if let Some((name, rest)) = split_heading(line) {
            if inside && parts.iter().any(|part| !part.trim().is_empty()) {
                break;
            }
            inside = name.starts_with(heading);
            found |= inside;
            parts.clear();
            if inside {
                parts.push(rest);
            }
        } else if inside {
            parts.push(line);
        }
    }
    let text = if inside {
        clean(&parts.join("\n"))
    } else {
        String::new()
    };
    match (text.is_empty(), found) {
        (false, _) => Ok(text),
        (true, true) => Err(ProblemKind::Blank { field: heading }),
        (true, false) => Err(ProblemKind::Missing { field: heading }),
    }
}

/// A line's heading, and what follows on the line.
fn split_heading(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.trim_start().split_once(':')?;
    let capital = |one: char| one.is_ascii_uppercase() || " ()/,-".contains(one);
    let heading = name.len() > 2
        && name.starts_with(|one: char| one.is_ascii_uppercase())
        && name.chars().all(capital)
        && (rest.is_empty() || rest.starts_with(char::is_whitespace));
    heading.then_some((name.trim_end(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "                                 FINAL REPORT\n \
        EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___F with cough\n \n FINDINGS: \n \n \
        Lungs are clear.\n No effusion at 12:30.\n \n IMPRESSION:\n\n Normal.\n";

    #[test]
    fn a_section_runs_to_the_next_heading() {
        let findings = section(REPORT, "FINDINGS").unwrap();
        assert_eq!(findings, "Lungs are clear. No effusion at 12:30.");
        assert_eq!(section(REPORT, "IMPRESSION").unwrap(), "Normal.");
        assert_eq!(
            section(REPORT, "EXAMINATION").unwrap(),
            "CHEST (PA AND LAT)"
        );
        let joint = " FINDINGS AND IMPRESSION: Clear.\n";
        assert_eq!(section(joint, "FINDINGS").unwrap(), "Clear.");
    }

    #[test]
    fn a_section_that_is_not_there_or_blank_is_named() {
        let missing = Err(ProblemKind::Missing { field: "FINDINGS" });
        assert_eq!(section("IMPRESSION: Normal.", "FINDINGS"), missing);
        let blank = Err(ProblemKind::Blank { field: "FINDINGS" });
        assert_eq!(
            section("FINDINGS:\n\nIMPRESSION: Normal.", "FINDINGS"),
            blank
        );
        assert_eq!(section("FINDINGS: \n", "FINDINGS"), blank);
        let late = "FINDINGS:\nIMPRESSION: Normal.\nFINDINGS: Clear.\nTECHNIQUE: PA";
        assert_eq!(section(late, "FINDINGS").unwrap(), "Clear.");
    }
}
