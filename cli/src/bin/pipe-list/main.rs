//! `pipe-list`: lists the pipes of this machine, without connecting to them.

use std::process::ExitCode;

use clap::Parser;
use pipe_server_cli::{
    command_line,
    escape::{escape, escape_json},
    exit::{Failure, program},
    streams,
};

#[cfg(target_os = "linux")]
use self::linux as system;
#[cfg(windows)]
use self::windows as system;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[derive(Debug, Parser)]
#[command(
    name = "pipe-list",
    version,
    about = "Lists the pipes of this machine",
    long_about = system::LONG_ABOUT,
    after_help = "Exit codes: 0 even if there are no pipes, 1 for a failure, 2 for bad usage."
)]
struct Options {
    /// Print one JSON object per pipe
    ///
    /// Its fields are the columns of the table in lower case, and null where the table has a dash.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    program("pipe-list", || command_line::parse().and_then(run))
}

#[allow(clippy::needless_pass_by_value, reason = "the last use of the options")]
fn run(options: Options) -> Result<(), Failure> {
    let pipes = system::pipes()?;
    let text = match options.json {
        true => pipes.iter().map(|pipe| json(&pipe.cells())).collect(),
        false => table(
            &pipes
                .iter()
                .map(system::ListedPipe::cells)
                .collect::<Vec<_>>(),
        ),
    };
    streams::print(text.as_bytes())
}

/// What is known of one pipe: columns and their values.
type Cells = Vec<(&'static str, serde_json::Value)>;

fn json(cells: &Cells) -> String {
    let fields: Vec<_> = cells
        .iter()
        .map(|(column, value)| format!(r#""{column}":{value}"#))
        .collect();
    escape_json(&format!("{{{}}}\n", fields.join(",")))
}

fn table(pipes: &[Cells]) -> String {
    let Some(first) = pipes.first() else {
        return String::new();
    };
    let heading = first.iter().map(|(column, _)| column.to_uppercase());
    let rows = pipes.iter().map(|cells| {
        let values = cells.iter().map(|(_, value)| match value {
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => escape(text),
            other => other.to_string(),
        });
        values.collect::<Vec<_>>()
    });
    let rows: Vec<_> = [heading.collect()].into_iter().chain(rows).collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..first.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        line.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn columns_are_aligned_and_names_can_not_break_them() {
        let pipes = [
            vec![("name", "a\n\u{202e}".into()), ("pid", 1.into())],
            vec![("name", "b".into()), ("pid", serde_json::Value::Null)],
        ];
        assert_eq!(
            table(&pipes),
            "NAME         PID\na\\n\\u{202e}  1\nb            -\n"
        );
        assert_eq!(json(&pipes[0]), "{\"name\":\"a\\n\\u202e\",\"pid\":1}\n");
        assert_eq!(table(&[]), "");
    }
}
