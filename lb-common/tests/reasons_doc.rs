//! docs/reasons.md says of every reason what the code says, and names no others.

use lb_common::reason::Reason;

/// The cells of the page's table, header and rule left out.
fn rows() -> Vec<Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
    let page = std::fs::read_to_string(path).expect("docs/reasons.md");
    page.lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

#[test]
fn every_reason_stands_in_the_page_as_in_the_code() {
    let rows = rows();
    for (i, reason) in Reason::ALL.iter().enumerate() {
        let name = reason.name();
        let expected = [reason.fate().name(), &format!("`{name}`"), reason.help()];
        let row = rows
            .get(i)
            .unwrap_or_else(|| panic!("docs/reasons.md has no row for {name}"));
        assert_eq!(
            row.get(..3).unwrap_or(row),
            expected,
            "docs/reasons.md, row {}: should be that of {name}",
            i + 1
        );
        assert!(
            row.len() == 4 && !row[3].is_empty(),
            "docs/reasons.md does not say what to do about {name}"
        );
    }
    assert_eq!(
        rows.len(),
        Reason::ALL.len(),
        "docs/reasons.md has rows that no reason has"
    );
}
