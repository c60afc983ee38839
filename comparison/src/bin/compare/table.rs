//! The results as a table in Markdown.

use std::fmt::Write as _;

use crate::{
    Options,
    contenders::Role,
    results::{Results, Spread},
};

pub(crate) fn table(results: &Results, options: &Options) -> String {
    let mut text = format!(
        "{}. Medians of {} rounds of {:?}.\n\n",
        options.heading, options.rounds, options.duration
    );
    let mut line = |cells: &[String]| _ = writeln!(text, "| {} |", cells.join(" | "));

    let mut heading = vec!["load".to_owned()];
    heading.extend(
        results
            .contenders
            .iter()
            .map(|contender| match contender.role {
                Role::Ours => format!("**{}**", contender.name),
                Role::Limit | Role::StreamLimit => format!("*{}*", contender.name),
                Role::AlsoOurs | Role::Other => contender.name.to_owned(),
            }),
    );
    heading.extend([
        "ours vs. *limit*".to_owned(),
        "ours vs. best other".to_owned(),
    ]);
    line(&heading);
    line(&rules(heading.len()));

    let mut reasons: Vec<String> = Vec::new();
    for row in &results.rows {
        let mut cells = vec![row.load.name.clone()];
        for (contender, cell) in results.contenders.iter().zip(&row.cells) {
            cells.push(match cell {
                Ok(figure) if contender.role == Role::Ours => {
                    format!("**{}**", row.load.unit.show(*figure))
                }
                Ok(figure) => row.load.unit.show(*figure),
                Err(reason) => {
                    let reason = format!("{}: {reason}", contender.name);
                    let known = reasons.iter().position(|known| *known == reason);
                    let number = known.unwrap_or_else(|| {
                        reasons.push(reason);
                        reasons.len() - 1
                    });
                    format!("– ({})", number + 1)
                }
            });
        }
        for role in [Role::Limit, Role::Other] {
            cells.push(results.ratio(row, role).map_or("–".to_owned(), show));
        }
        line(&cells);
    }
    for (index, reason) in reasons.iter().enumerate() {
        let gap = if index == 0 { "\n" } else { "" };
        _ = writeln!(text, "{gap}{}. {reason}", index + 1);
    }
    text
}

/// Our figures divided by each contender's. Only printed: the page says how much better ours is than
/// the best of the others.
pub(crate) fn ratios(results: &Results) -> String {
    let mut text = String::from(
        "Ours divided by theirs, round by round: the median, and the lowest and the highest.\n\n",
    );
    let mut line = |cells: &[String]| _ = writeln!(text, "| {} |", cells.join(" | "));

    let mut heading = vec!["load".to_owned()];
    let others = results.contenders.iter().skip(1);
    heading.extend(others.map(|contender| contender.name.to_owned()));
    line(&heading);
    line(&rules(heading.len()));
    for row in &results.rows {
        let mut cells = vec![row.load.name.clone()];
        cells.extend(row.ratios.iter().skip(1).map(|ratio| match ratio {
            Some(Spread {
                lowest,
                median,
                highest,
            }) => format!("{} ({}..{})", show(*median), show(*lowest), show(*highest)),
            None => "–".to_owned(),
        }));
        line(&cells);
    }
    text
}

/// The line below a heading: all columns but the first are aligned to the right.
fn rules(columns: usize) -> Vec<String> {
    let rule = |column| if column == 0 { "---" } else { "---:" }.to_owned();
    (0..columns).map(rule).collect()
}

/// Formats a ratio.
fn show(ratio: f64) -> String {
    match ratio {
        ..0.1 => format!("{ratio:.3}"),
        _ => format!("{ratio:.2}"),
    }
}
