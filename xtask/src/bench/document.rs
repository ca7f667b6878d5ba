//! `docs/benchmarks.md`: sections that are measured, between marks; what is written by hand around
//! them stays.

use std::fmt::Write as _;

use super::table::Table;

/// What one part measured.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Its name among the parts.
    pub part: String,
    pub title: String,
    /// Command, date and machine.
    pub taken: String,
    /// What was done.
    pub method: String,
    pub table: Table,
    /// Goals and how they were met, what was missing, what else to know; a Markdown line each.
    pub remarks: Vec<String>,
}

impl Section {
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.title);
        let _ = writeln!(text, "{}\n\n{}\n", self.taken, self.method);
        if !self.table.is_empty() {
            let _ = writeln!(text, "{}", self.table.markdown());
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "{remark}");
        }
        text
    }

    fn begin(part: &str) -> String {
        format!("<!-- measured: {part} -->\n")
    }

    fn end(part: &str) -> String {
        format!("<!-- end: {part} -->\n")
    }
}

/// The page with these sections in the place of their former selves, or at its end.
pub fn with_sections(page: &str, sections: &[Section]) -> String {
    let mut page = page.to_owned();
    for section in sections {
        let (begin, end) = (Section::begin(&section.part), Section::end(&section.part));
        let new = format!("{begin}{}{end}", section.markdown());
        let place = page
            .find(&begin)
            .and_then(|from| Some((from, from + page[from..].find(&end)? + end.len())));
        match place {
            Some((from, to)) => page.replace_range(from..to, &new),
            None => {
                if !page.is_empty() && !page.ends_with("\n\n") {
                    page.push('\n');
                }
                page += &new;
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(part: &str, title: &str) -> Section {
        Section {
            part: part.to_owned(),
            title: title.to_owned(),
            ..Section::default()
        }
    }

    #[test]
    fn a_section_replaces_its_former_self_and_nothing_else() {
        let page = with_sections("# Page\n", &[section("a", "Old"), section("b", "Other")]);
        let page = page + "\nBy hand.\n";
        let again = with_sections(&page, &[section("a", "New")]);
        assert_eq!(again, page.replace("## Old", "## New"));
        assert!(again.starts_with("# Page\n\n<!-- measured: a -->\n## New\n"));
        assert!(again.ends_with("By hand.\n") && again.contains("## Other"));
    }
}
