//! Image files by the names that rows have for them. In: folders and a name. Out: a path inside one of
//! them, or why there is none. It must not know what the image shows.

use std::path::{Component, Path, PathBuf};

use super::ProblemKind;

/// Endings that a name may lack.
const ENDINGS: [&str; 4] = ["", ".jpg", ".png", ".jpeg"];

/// The file of that name in the first folder that has it, with one of the usual endings where the
/// name has none. A name that leads out of its folder is refused.
pub(in crate::data) fn image(folders: &[PathBuf], name: &str) -> Result<PathBuf, ProblemKind> {
    let inside = Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || name.is_empty() {
        return Err(ProblemKind::ImageName { name: name.into() });
    }
    folders
        .iter()
        .flat_map(|folder| ENDINGS.map(|end| folder.join(format!("{name}{end}"))))
        .find(|path| path.is_file())
        .ok_or_else(|| ProblemKind::NoImage { name: name.into() })
}

/// The images of a study: those that are there, and a note for each that is not. With none there, the
/// first fault is the study's.
pub(in crate::data) fn views<T>(
    names: &[String],
    find: impl Fn(&str) -> Result<T, ProblemKind>,
) -> Result<(Vec<T>, Vec<ProblemKind>), ProblemKind> {
    let (mut images, mut faults) = (Vec::new(), Vec::new());
    for name in names {
        match find(name) {
            Ok(image) => images.push(image),
            Err(fault) => faults.push(fault),
        }
    }
    if images.is_empty() {
        let none = ProblemKind::Missing { field: "image" };
        return Err(faults.into_iter().next().unwrap_or(none));
    }
    let notes = faults.into_iter().map(|fault| match fault {
        ProblemKind::NoImage { name } => ProblemKind::NoView { name },
        other => other,
    });
    // A name that leads elsewhere spoils the row, whatever other images there are.
    let notes: Vec<ProblemKind> = notes.collect();
    match notes.iter().find(|note| note.drops()) {
        Some(fault) => Err(fault.clone()),
        None => Ok((images, notes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::Folder;

    #[test]
    fn names_may_lack_an_ending_and_may_not_lead_away() {
        let folder = Folder::new();
        folder
            .write("a/one.png", "1")
            .write("b/one.jpg", "1")
            .write("b/c/two.jpg", "2");
        let folders = [folder.path().join("a"), folder.path().join("b")];
        assert!(image(&folders, "one").unwrap().ends_with("a/one.png"));
        assert!(image(&folders, "one.jpg").unwrap().ends_with("b/one.jpg"));
        assert!(image(&folders, "c/two").unwrap().ends_with("b/c/two.jpg"));
        for name in ["../a/one.png", "/etc/passwd", ""] {
            let fault = image(&folders, name).unwrap_err();
            assert_eq!(fault, ProblemKind::ImageName { name: name.into() });
        }
        assert!(matches!(
            image(&folders, "c"),
            Err(ProblemKind::NoImage { .. })
        ));
    }

    #[test]
    fn a_study_stands_with_one_of_its_images() {
        let find = |name: &str| {
            let name = name.to_owned();
            match name.as_str() {
                "here" => Ok(name),
                "../there" => Err(ProblemKind::ImageName { name }),
                _ => Err(ProblemKind::NoImage { name }),
            }
        };
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            views(&names, find)
        };
        let gone = |name: &str| ProblemKind::NoView { name: name.into() };
        assert_eq!(
            of(&["a", "here"]),
            Ok((vec!["here".into()], vec![gone("a")]))
        );
        assert_eq!(
            of(&["a", "b"]),
            Err(ProblemKind::NoImage { name: "a".into() })
        );
        assert_eq!(of(&[]), Err(ProblemKind::Missing { field: "image" }));
        assert!(matches!(
            of(&["here", "../there"]),
            Err(ProblemKind::ImageName { .. })
        ));
    }
}
