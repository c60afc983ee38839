//! The options of a Windows service.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

/// This server as a service.
#[derive(Args, Debug)]
#[command(next_help_heading = "Windows service")]
pub(crate) struct ServiceOptions {
    /// Install a service that runs this program with the other options, or remove it
    ///
    /// The service starts with the system, and again within a minute after a failure. It needs
    /// --access, because by default only its own account may connect. Its log goes to
    /// %ProgramData%\pipe-server\NAME.log, unless --log-file is given. A stop lets running
    /// requests finish, up to --drain-timeout. What its clients need, and how to install it with
    /// sc.exe: docs/windows-service.md.
    #[arg(long = "service", value_name = "ACTION", value_enum)]
    pub(crate) action: Option<ServiceAction>,

    /// Name of the service: letters, digits, and . _ -
    #[arg(long = "service-name", value_name = "NAME", default_value = "pipe-server", requires = "action",
        value_parser = service_name)]
    pub(crate) name: String,

    /// Account without a password that the service runs as [default: NT SERVICE\NAME, which is its
    /// own]
    ///
    /// Others are NT AUTHORITY\LocalService, NT AUTHORITY\NetworkService, LocalSystem, and a
    /// managed account, DOMAIN\NAME$. It must be able to read this program.
    #[arg(long = "service-account", value_name = "ACCOUNT", requires = "action",
        value_parser = NonEmptyStringValueParser::new())]
    pub(crate) account: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceAction {
    /// Register the service, with the other options; it is not started yet
    Install,
    /// Stop the service and delete it
    Remove,
    /// Be the service: only the service manager can start that
    Run,
}

/// These characters need no quotes and have one uppercase form, which the SID of the service
/// depends on.
fn service_name(text: &str) -> Result<String, &'static str> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    match (1..=80).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("give 1 to 80 letters, digits, and . _ -"),
    }
}
