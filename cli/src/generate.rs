//! Files for packages: completions of shells and the manual page.

use clap::{Command, ValueEnum};
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
            None => Man::new(command)
                .render(&mut file)
                .expect("memory can be written to"),
        }
        streams::print(&file)
    }
}
