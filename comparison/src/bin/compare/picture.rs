//! The results as a picture: one panel per load, one bar per contender.

use std::fmt::Write as _;

use crate::{
    Options,
    contenders::Role,
    loads::Unit,
    results::{Results, Row},
};

const COLUMNS: usize = 2;
const PANEL_WIDTH: usize = 460;
pub(crate) const MARGIN: usize = 20;
pub(crate) const HEADING: usize = 60;
pub(crate) const TITLE: usize = 26;
const BAR: usize = 18;
/// Where the bars start, after the contenders' names, and the length of the longest bar.
const NAMES: usize = 160;
const LONGEST: usize = 200;

pub(crate) fn picture(results: &Results, options: &Options) -> String {
    let panel_height = TITLE + results.contenders.len() * BAR + MARGIN;
    let width = MARGIN + COLUMNS * (PANEL_WIDTH + MARGIN);
    let height = HEADING + results.rows.len().div_ceil(COLUMNS) * panel_height;
    let mut svg = heading(options, (width, height), "", "Grey: the limits");
    for (index, row) in results.rows.iter().enumerate() {
        let x = MARGIN + index % COLUMNS * (PANEL_WIDTH + MARGIN);
        let y = HEADING + index / COLUMNS * panel_height;
        panel(&mut svg, results, row, x, y);
    }
    svg.push_str("</svg>\n");
    svg
}

/// The beginning of a picture.
pub(crate) fn heading(
    options: &Options,
    (width, height): (usize, usize),
    subtitle: &str,
    note: &str,
) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="#222">
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="{MARGIN}" y="28" font-size="16" font-weight="bold">pipe-server and others on {}{subtitle}</text>
<text x="{MARGIN}" y="46" fill="#666">{}. {note}.</text>
"##,
        options.system.title(),
        escaped(&options.heading),
    )
}

/// The title of a panel, and whether more is better.
pub(crate) fn title(svg: &mut String, name: &str, unit: Unit, x: usize, y: usize) {
    let better = if unit.more_is_better() {
        "per second; more is better"
    } else {
        "less is better"
    };
    _ = writeln!(
        svg,
        r##"<text x="{x}" y="{y}"><tspan font-weight="bold">{}</tspan> <tspan fill="#666">{better}</tspan></text>"##,
        escaped(name),
    );
}

pub(crate) fn colour(role: Role) -> &'static str {
    match role {
        Role::Ours => "#d1495b",
        Role::AlsoOurs => "#e9a3ab",
        Role::Limit => "#8d99ae",
        Role::StreamLimit => "#c5ccd6",
        Role::Other => "#30638e",
    }
}

fn panel(svg: &mut String, results: &Results, row: &Row, x: usize, y: usize) {
    let unit = row.load.unit;
    title(svg, &row.load.name, unit, x, y + 16);
    let most = row.cells.iter().flatten().copied().fold(0.0, f64::max);
    for (index, (contender, cell)) in results.contenders.iter().zip(&row.cells).enumerate() {
        let top = y + TITLE + index * BAR;
        let base = top + 13;
        let colour = colour(contender.role);
        _ = writeln!(
            svg,
            r#"<text x="{}" y="{base}" text-anchor="end">{}</text>"#,
            x + NAMES - 8,
            escaped(contender.name),
        );
        let (length, text) = match cell {
            Ok(figure) if most > 0.0 => {
                (figure.max(0.0) / most * LONGEST as f64, unit.show(*figure))
            }
            _ => (0.0, "–".to_owned()),
        };
        _ = writeln!(
            svg,
            r#"<rect x="{}" y="{}" width="{length:.1}" height="{}" fill="{colour}"/>"#,
            x + NAMES,
            top + 2,
            BAR - 4,
        );
        _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{base}">{}</text>"#,
            (x + NAMES) as f64 + length + 6.0,
            escaped(&text),
        );
    }
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
