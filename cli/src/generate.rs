//! Files for packages: completions of shells and the manual page.

use clap::{ArgAction, Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{exit::Failure, streams};

/// What `--generate` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Generate {
    /// Completions for bash
    Bash,
    /// Completions for fish
    Fish,
    /// Manual page
    Man,
    /// Completions for PowerShell
    Powershell,
    /// Completions for zsh
    Zsh,
}

impl Generate {
    /// Prints it to stdout.
    pub(crate) fn print(self, mut command: Command) -> Result<(), Failure> {
        let shell = match self {
            Self::Bash => Some(Shell::Bash),
            Self::Fish => Some(Shell::Fish),
            Self::Powershell => Some(Shell::PowerShell),
            Self::Zsh => Some(Shell::Zsh),
            Self::Man => None,
        };
        let name = command.get_name().to_owned();
        let mut file = Vec::new();
        match shell {
            Some(shell) => clap_complete::generate(shell, &mut command, name, &mut file),
            None => file = manual_page(command).into_bytes(),
        }
        streams::print(&file)
    }
}

/// The manual page, with the values of options in its synopsis, which clap_mangen leaves out.
fn manual_page(command: Command) -> String {
    let values: Vec<_> = command
        .get_arguments()
        .filter(|option| option.get_action().takes_values())
        .filter_map(|option| {
            let repeated = matches!(option.get_action(), ArgAction::Append);
            let name = option.get_long()?.replace('-', "\\-");
            let value = option.get_value_names()?.join(" ").replace('-', "\\-");
            Some((name, value, if repeated { "..." } else { "" }))
        })
        .collect();
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .expect("memory can be written to");
    let mut page = String::from_utf8(page).expect("help is text");
    for (name, value, repeated) in values {
        // Only the synopsis has brackets.
        let option = format!("[\\fB\\-\\-{name}\\fR");
        page = page.replace(
            &format!("{option}]"),
            &format!("{option} \\fI{value}\\fR]{repeated}"),
        );
    }
    page
}
