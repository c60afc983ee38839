//! The results as a table in Markdown.

use std::fmt::Write as _;

use crate::{Options, contenders::Role, results::Results};

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
    let rules: Vec<String> = (0..heading.len())
        .map(|column| if column == 0 { "---" } else { "---:" }.to_owned())
        .collect();
    line(&rules);

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
            let ratio = results.ratio(row, role);
            cells.push(match ratio {
                Some(ratio @ ..0.1) => format!("{ratio:.3}"),
                Some(ratio) => format!("{ratio:.2}"),
                None => "–".to_owned(),
            });
        }
        line(&cells);
    }
    for (index, reason) in reasons.iter().enumerate() {
        let gap = if index == 0 { "\n" } else { "" };
        _ = writeln!(text, "{gap}{}. {reason}", index + 1);
    }
    text
}
