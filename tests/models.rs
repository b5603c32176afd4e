//! docs/models.md against the code and the goldens: every family, wrapper and GGUF architecture that is run
//! has its row, no row names another, and what a row says was checked is there to be checked.

use std::collections::BTreeSet;
use std::path::Path;

use tallow::config;

/// The cells of the rows of a table under a heading, without its two first rows.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let after = text.split(heading).nth(1).unwrap_or_else(|| panic!("no {heading:?} in docs/models.md"));
    let rows =
        after.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect();
    rows.skip(2).map(cells).collect()
}

/// The words in backticks.
fn code(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_string)
}

fn column(rows: &[Vec<String>], at: usize) -> BTreeSet<String> {
    rows.iter().flat_map(|row| code(&row[at])).collect()
}

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_string).collect()
}

#[test]
fn the_page_of_models_says_what_is_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/models.md")).unwrap();
    let (families, wrappers) = config::supported();
    let rows = table(&text, "## Families");
    assert_eq!(column(&rows, 1), set(families.iter().flat_map(|f| f.model_types.iter().copied())));
    assert_eq!(column(&rows, 2), set(families.iter().flat_map(|f| f.architectures.iter().copied())));
    assert_eq!(column(&table(&text, "## Wrappers"), 0), set(wrappers));
    // Each row was checked by at least one checkpoint, and each checkpoint stands in a row.
    let goldens = root.join("tests/golden/families");
    let there = goldens.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let there = there.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(column(&rows, 3), there);
    for row in &rows {
        assert!(code(&row[3]).next().is_some(), "{} was not checked", row[0]);
    }
}
