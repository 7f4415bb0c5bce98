//! What libtest-style output says: totals, and the names of what failed or was skipped.
//!
//! Pure: fed line by line, starts nothing.

use std::ops::AddAssign;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    pub failed_names: Vec<String>,
    /// With the reason where the output gives one.
    pub skipped_names: Vec<String>,
    /// Tests of the binary that is running which said that they are skipped, and will be counted as passed.
    late_skips: u64,
}

impl Totals {
    /// Takes one line of a test binary's output into account. Lines of other kinds change nothing.
    pub fn read(&mut self, line: &str) {
        let line = without_colours(line);
        let line = line.trim();
        if let Some(result) = line.strip_prefix("test result: ") {
            if let Some((passed, failed, ignored)) = counts(result) {
                let late = std::mem::take(&mut self.late_skips).min(passed);
                self.passed += passed - late;
                self.failed += failed;
                self.skipped += ignored + late;
            }
        } else if let Some(name) = line.strip_prefix("SKIPPED ") {
            // libtest has no way to skip at run time: such a test says this line and returns, and is counted as passed.
            self.late_skips += 1;
            self.skipped_names.push(name.to_owned());
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            let name = name.trim();
            if outcome.starts_with("FAILED") {
                self.failed_names.push(name.to_owned());
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                let reason = reason.trim_start_matches([',', ' ']);
                self.skipped_names.push(match reason {
                    "" => name.to_owned(),
                    reason => format!("{name} ({reason})"),
                });
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    pub fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl AddAssign<Totals> for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failed_names.extend(other.failed_names);
        self.skipped_names.extend(other.skipped_names);
    }
}

/// `ok. 3 passed; 0 failed; 1 ignored; …` → (3, 0, 1).
fn counts(result: &str) -> Option<(u64, u64, u64)> {
    let (_verdict, counts) = result.split_once(". ")?;
    let count = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok())
    };
    Some((count("passed")?, count("failed")?, count("ignored")?))
}

/// Drops `ESC [ … letter` sequences: a harness may be told to colour its output even into a pipe.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after
            .find(|c: char| c.is_ascii_alphabetic())
            .map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Totals {
        let mut totals = Totals::default();
        output.lines().for_each(|line| totals.read(line));
        totals
    }

    #[test]
    fn binaries_are_summed() {
        let totals = read(
            "running 2 tests\n\
             test a ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: FAILED. 10 passed; 3 failed; 4 ignored; 0 measured; 7 filtered out; finished in 1.20s\n",
        );
        assert_eq!((totals.passed, totals.failed, totals.skipped), (12, 3, 4));
        assert_eq!(totals.closing_line(), "12 passed, 3 failed, 4 skipped");
    }

    #[test]
    fn a_test_that_skips_itself_is_no_passed_one() {
        let mut totals = Totals::default();
        for line in [
            "SKIPPED promtool: not installed",
            "test promtool ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            totals.read(line);
        }
        assert_eq!(totals.closing_line(), "4 passed, 0 failed, 2 skipped");
        assert_eq!(totals.skipped_names, ["promtool: not installed"]);
    }

    #[test]
    fn names_of_failed_and_skipped_are_kept() {
        let totals = read(
            "test maglev::tests::golden ... FAILED\n\
             test slow ... ignored, takes an hour\n\
             test forward::ipv4      ... ignored\n\
             test src/lib.rs - parse (line 3) ... ok\n",
        );
        assert_eq!(totals.failed_names, ["maglev::tests::golden"]);
        assert_eq!(
            totals.skipped_names,
            ["slow (takes an hour)", "forward::ipv4"]
        );
    }

    #[test]
    fn colours_are_no_obstacle() {
        let totals = read(
            "test x ... \x1b[31mFAILED\x1b[0m\n\
             test result: \x1b[31mFAILED\x1b[0m. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((totals.failed, totals.failed_names.len()), (1, 1));
    }

    #[test]
    fn other_lines_count_for_nothing() {
        assert!(
            read(
                "test result: ok\ntest result: ok. many passed\ntesting 3 passed; 2 failed\n\x1b["
            )
            .is_empty()
        );
    }
}
