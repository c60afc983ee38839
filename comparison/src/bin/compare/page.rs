//! The page in the docs: written by hand, except for the parts that comparisons replace.

use std::{fs, io};

use crate::Options;

/// Writes the table into its part of the page, and the picture beside the page.
pub(crate) fn write(options: &Options, table: &str, picture: &str) -> io::Result<()> {
    let part = options.part();
    let path = options.docs.join("performance.md");
    let page = fs::read_to_string(&path)?;
    let (begin, end) = (
        format!("<!-- {part}: begin -->\n"),
        format!("<!-- {part}: end -->"),
    );
    let parts = page.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        return Err(io::Error::other(format!(
            "{} has no part from {} to {end}",
            path.display(),
            begin.trim_end()
        )));
    };
    let drawing = format!("performance-{part}.svg");
    let page =
        format!("{before}{begin}\n{table}\n![The table as a picture]({drawing})\n\n{end}{after}");
    fs::write(options.docs.join(drawing), picture)?;
    fs::write(path, page)
}
