//! Files for packages: completions of shells and the manual page.

use std::io::{self, Write as _};

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::exit::Failure;

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
        let printed = match shell {
            Some(shell) => {
                clap_complete::generate(shell, &mut command, name, &mut file);
                Ok(())
            }
            None => Man::new(command).render(&mut file),
        };
        let printed = printed.and_then(|()| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&file)?;
            stdout.flush()
        });
        match printed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(format!("can't write to stdout: {error}")))
            }
            _ => Ok(()),
        }
    }
}
