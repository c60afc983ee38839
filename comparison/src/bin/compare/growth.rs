//! Growth as a picture: one panel for each series of loads, one line for each contender. Flat is the aim for rates.

use std::fmt::Write as _;

use crate::{
    Options,
    contenders::Role,
    picture::{self, HEADING, MARGIN, TITLE, escaped},
    results::{Results, Row},
};

const PANEL_WIDTH: usize = 420;
const PANEL_HEIGHT: usize = 260;
/// Beside and below the lines, for the figures.
const AXIS: usize = 50;
const LEGEND_LINE: usize = 18;
const OTHERS: [&str; 6] = [
    "#30638e", "#3f9c5f", "#7b4b94", "#c98a1b", "#2aa6b3", "#7a5230",
];

pub(crate) fn picture(results: &Results, options: &Options) -> String {
    let series = series(&results.rows);
    let width = MARGIN + series.len() * (PANEL_WIDTH + MARGIN);
    let height = HEADING + PANEL_HEIGHT + results.contenders.len() * LEGEND_LINE + MARGIN;
    let mut svg = picture::heading(
        options,
        (width, height),
        ", by the number of connections",
        "Both axes are logarithmic",
    );
    for (index, rows) in series.iter().enumerate() {
        panel(
            &mut svg,
            results,
            rows,
            MARGIN + index * (PANEL_WIDTH + MARGIN),
        );
    }
    for (index, contender) in results.contenders.iter().enumerate() {
        let y = HEADING + PANEL_HEIGHT + index * LEGEND_LINE + MARGIN;
        let (colour, dashes) = style(results, index);
        _ = writeln!(
            svg,
            r#"<line x1="{MARGIN}" x2="{}" y1="{}" y2="{}" stroke="{colour}" stroke-width="2" {dashes}/><text x="{}" y="{y}">{}</text>"#,
            MARGIN + 30,
            y - 4,
            y - 4,
            MARGIN + 40,
            escaped(contender.name),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The rows of each series, which follow one another.
fn series(rows: &[Row]) -> Vec<&[Row]> {
    rows.chunk_by(|one, other| series_name(one) == series_name(other))
        .collect()
}

fn series_name(row: &Row) -> &str {
    row.load.name.split(':').next().unwrap_or_default()
}

fn panel(svg: &mut String, results: &Results, rows: &[Row], left: usize) {
    let Some(first) = rows.first() else { return };
    let unit = first.load.unit;
    let figures = rows.iter().flat_map(|row| row.cells.iter().flatten());
    let (least, most) = figures.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), &figure| {
        (least.min(figure), most.max(figure))
    });
    let (top, bottom) = (HEADING + TITLE, HEADING + PANEL_HEIGHT - AXIS);
    // One place for each row: the numbers of connections grow by a factor.
    let x = |index: usize| {
        let places = rows.len().saturating_sub(1).max(1);
        (left + AXIS + index * (PANEL_WIDTH - 2 * AXIS) / places) as f64
    };
    let y = |figure: f64| {
        let share = (figure / least).ln() / (most / least).ln().max(f64::MIN_POSITIVE);
        bottom as f64 - share * (bottom - top) as f64
    };
    picture::title(svg, series_name(first), unit, left, HEADING + 10);
    for figure in [least, most] {
        _ = writeln!(
            svg,
            r##"<text x="{}" y="{:.1}" text-anchor="end" fill="#666">{}</text>"##,
            left + AXIS - 8,
            y(figure) + 4.0,
            escaped(&unit.show(figure)),
        );
    }
    for (index, row) in rows.iter().enumerate() {
        _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{}" text-anchor="middle" fill="#666">{}</text>"##,
            x(index),
            bottom + 20,
            row.load.connections(),
        );
    }
    // Ours last, on top of the others.
    for contender in (0..results.contenders.len()).rev() {
        let points: Vec<String> = rows
            .iter()
            .enumerate()
            .filter_map(|(index, row)| {
                let figure = *row.cells.get(contender)?.as_ref().ok()?;
                Some(format!("{:.1},{:.1}", x(index), y(figure)))
            })
            .collect();
        let (colour, dashes) = style(results, contender);
        _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2" {dashes}/>"#,
            points.join(" "),
        );
    }
}

/// The colour says whose it is, the dashes which one of them. There are too many others for that: each has a colour.
fn style(results: &Results, index: usize) -> (&'static str, String) {
    let role = results.contenders[index].role;
    let earlier = &results.contenders[..index];
    let number = earlier.iter().filter(|other| other.role == role).count();
    if role == Role::Other {
        return (OTHERS[number % OTHERS.len()], String::new());
    }
    let dashes = match number {
        0 => String::new(),
        _ => format!(r#"stroke-dasharray="{} 3""#, 12 / number),
    };
    (picture::colour(role), dashes)
}
