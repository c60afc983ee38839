//! The command line, and what adds to it: environment variables and a configuration file.
//!
//! Both are turned into arguments, which are placed before the command line's own. Not clap's own environment
//! variables: an error in one does not name it, and one that conflicts with the command line would be an error.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, Parser, builder::EnumValueParser, error::ErrorKind,
    parser::ValueSource, value_parser,
};
use toml::de::{DeTable, DeValue};

use crate::{escape::escape, exit::Failure, generate::Generate};

/// Options that only the command line can give.
const ONLY_HERE: [&str; 7] = [
    "file",
    GENERATE,
    "help",
    "service",
    "service-account",
    "service-name",
    "version",
];
const CONFIG: &str = "config";
const GENERATE: &str = "generate";

const ENVIRONMENT_HELP: &str = "\
Each option can be given by its environment variable as well: true or false for an option without
a value, a number for -v, and values with commas between them for an option that can be repeated. An
empty variable is ignored. The command line takes precedence over the environment";

/// What the command line, the environment and the file say.
#[derive(Debug)]
pub struct Parsed<O> {
    pub options: O,
    /// The arguments that have the same effect in another environment: what the environment gives, followed by the
    /// command line's own, without the program.
    pub arguments: Vec<OsString>,
}

/// Parses the command line and the environment. If help, the version or a generated file is asked for, prints
/// it and exits, as it does after bad usage.
pub fn parse<O: Parser>() -> Result<O, Failure> {
    let parsed = parse_command(O::command().after_help(after_help::<O>(".")));
    Ok(parsed.map_err(Refused::print)?.options)
}

/// Parses the command line, the environment and the file that `--config` names, which this adds.
pub fn parse_with_file<O: Parser>() -> Result<Parsed<O>, Failure> {
    parse_command(command_with_file::<O>()).map_err(Refused::print)
}

/// The same for a program whose stderr nobody reads: bad usage is a failure as well.
pub fn parse_unattended<O: Parser>() -> Result<Parsed<O>, Failure> {
    parse_command(command_with_file::<O>()).map_err(Refused::into_failure)
}

/// What the command line alone gives, up to what is wrong in it, and the defaults of other options. `None` if it asks for
/// help or the version.
pub fn given<O: Parser>() -> Option<ArgMatches> {
    let command = command_with_file::<O>().ignore_errors(true);
    command.try_get_matches().ok()
}

fn command_with_file<O: Parser>() -> Command {
    let file = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Take options from FILE, in TOML")
        .long_help(
            "Take options from FILE, in TOML\n\nIts keys are the names of the options: idle-timeout = \"10min\", \
             max-instances = 4. An option without a value is true or false, one that can be repeated a list, and \
             verbose a number.",
        );
    let precedence = ",\nand the environment over the file of --config.";
    let command = O::command().after_help(after_help::<O>(precedence));
    command.arg(file)
}

fn after_help<O: Parser>(precedence: &str) -> String {
    let own = O::command().get_after_help().map(ToString::to_string);
    format!(
        "{}\n{ENVIRONMENT_HELP}{precedence}",
        own.unwrap_or_default()
    )
}

fn parse_command<O: Parser>(command: Command) -> Result<Parsed<O>, Refused> {
    let arguments: Vec<OsString> = env::args_os().collect();
    // Not for generated files: the completions of bash have hidden options too.
    let described = with_variables(command.clone());
    let generate = Arg::new(GENERATE)
        .long(GENERATE)
        .value_name("WHAT")
        .value_parser(EnumValueParser::<Generate>::new())
        .exclusive(true)
        .hide(true);
    let mut command = command.arg(&generate);
    // Creates the groups, which conflicts are looked up in.
    command.build();

    // What the command line gives, whether or not it is complete.
    let given = command.clone().ignore_errors(true);
    let Ok(given) = given.try_get_matches_from(&arguments) else {
        // Help or the version.
        _ = described.arg(generate).get_matches_from(&arguments);
        process::exit(0);
    };
    if let Some(&what) = given.try_get_one::<Generate>(GENERATE).ok().flatten() {
        what.print(described)?;
        process::exit(0);
    }
    let is_given =
        |arg: &&Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let given_here = command.get_arguments().filter(is_given);
    // And whether it is turned on: one that is off conflicts with nothing.
    let mut settled: Vec<(&Arg, bool)> = given_here.map(|arg| (arg, true)).collect();

    let environment = environment(&command, |name| env::var_os(name))?;
    let path = given.try_get_one::<PathBuf>(CONFIG).ok().flatten().cloned();
    let in_environment = environment.iter().find(|setting| setting.is(CONFIG));
    let path = path.or_else(|| in_environment.map(|setting| setting.value.clone().into()));
    let file = match path {
        Some(path) => file(&command, &path)?,
        None => Vec::new(),
    };
    let mut used = Vec::new();
    let mut portable = Vec::new();
    for (layer, is_environment) in [(environment, true), (file, false)] {
        let layer: Vec<_> = layer
            .into_iter()
            .filter(|setting| {
                let (arg, on) = (setting.arg, setting.is_on());
                !settled.iter().any(|&(upper, upper_on)| {
                    upper.get_id() == arg.get_id()
                        || on && upper_on && conflict(&command, upper, arg)
                })
            })
            .collect();
        settled.extend(layer.iter().map(|setting| (setting.arg, setting.is_on())));
        if is_environment {
            let arguments = layer.iter().flat_map(|setting| &setting.arguments);
            portable.extend(arguments.cloned());
        }
        used.extend(layer);
    }

    let (program, own) = arguments.split_at(arguments.len().min(1));
    let added = used.iter().flat_map(|setting| &setting.arguments);
    let all = program.iter().chain(added).chain(own);
    portable.extend_from_slice(own);
    let parsed = command
        .clone()
        .try_get_matches_from(all)
        .and_then(|mut matches| O::from_arg_matches_mut(&mut matches));
    let parsed = parsed.map(|options| Parsed {
        options,
        arguments: portable,
    });
    parsed.map_err(|error| {
        let origins: Vec<_> = used.iter().map(|setting| &*setting.origin).collect();
        let note = is_combination(&error) && !used.is_empty();
        let note = note.then(|| format!("options are also set by {}", origins.join(", ")));
        Refused::Usage { error, note }
    })
}

/// Why there are no options.
enum Refused {
    /// What clap says of the command line as a whole.
    Usage {
        error: clap::Error,
        note: Option<String>,
    },
    Failure(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Refused {
    /// Prints what clap says, with the usage and hints, and exits.
    fn print(self) -> Failure {
        let (error, note) = match self {
            Self::Usage { error, note } => (error, note),
            Self::Failure(failure) => return failure,
        };
        _ = error.print();
        if let Some(note) = note {
            _ = writeln!(io::stderr(), "\nnote: {}", escape(&note));
        }
        process::exit(error.exit_code())
    }

    /// In one line, without the usage and hints.
    fn into_failure(self) -> Failure {
        match self {
            Self::Usage { error, note } => {
                let note = note.map(|note| format!("; {note}")).unwrap_or_default();
                Failure::usage(format!("{}{note}", problem(&error)))
            }
            Self::Failure(failure) => failure,
        }
    }
}

/// What is wrong, in one line.
fn problem(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // What follows are the usage and hints.
    let problem = text.split("\n\n").next().unwrap_or(text);
    let words: Vec<_> = problem.split_whitespace().collect();
    words.join(" ")
}

/// Whether an error is about the combination of options and not about one of them.
fn is_combination(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ArgumentConflict | ErrorKind::MissingRequiredArgument
    )
}

/// An option from elsewhere than the command line.
struct Setting<'a> {
    arg: &'a Arg,
    /// Where it is from, for errors.
    origin: String,
    /// As text, for an option with one value.
    value: OsString,
    arguments: Vec<OsString>,
}

impl<'a> Setting<'a> {
    /// Fails if the value is wrong.
    fn new(
        command: &Command,
        arg: &'a Arg,
        origin: String,
        arguments: Result<Vec<OsString>, String>,
        value: OsString,
    ) -> Result<Self, Failure> {
        let wrong = |problem: &str| Failure::usage(format!("{origin}: {problem}"));
        let arguments = arguments.map_err(|problem| wrong(&problem))?;
        // Alone, so that what is wrong is this value. Options that it requires may follow.
        let program = OsString::from(command.get_name());
        let alone = command.clone();
        if let Err(error) = alone.try_get_matches_from([&program].into_iter().chain(&arguments)) {
            if !is_combination(&error) {
                return Err(wrong(&problem(&error)));
            }
        }
        Ok(Self {
            arg,
            origin,
            value,
            arguments,
        })
    }

    fn is_on(&self) -> bool {
        !self.arguments.is_empty()
    }

    fn is(&self, id: &str) -> bool {
        self.arg.get_id() == id
    }
}

/// The options that can be set elsewhere, with their names.
fn options(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?, arg)))
        .filter(|(long, _)| !ONLY_HERE.contains(long))
}

/// `PIPE_SERVER_IDLE_TIMEOUT` for `--idle-timeout` of `pipe-server`.
fn variable(command: &Command, long: &str) -> String {
    let name = format!("{}_{long}", command.get_name());
    name.replace('-', "_").to_ascii_uppercase()
}

/// Adds the names of the variables, for the help.
fn with_variables(command: Command) -> Command {
    let program = command.clone();
    command.mut_args(|arg| match arg.get_long() {
        Some(long) if !ONLY_HERE.contains(&long) => {
            let name = variable(&program, long);
            arg.env(name).hide_env_values(true)
        }
        _ => arg,
    })
}

/// The options that environment variables set.
fn environment(
    command: &Command,
    value_of: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<Setting<'_>>, Failure> {
    let mut settings = Vec::new();
    for (long, arg) in options(command) {
        let name = variable(command, long);
        let Some(value) = value_of(&name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let text = value.to_str().map(str::trim).unwrap_or_default();
        let arguments = match arg.get_action() {
            ArgAction::SetTrue => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(repeated(long, 1)),
                "false" | "no" | "off" | "0" => Ok(Vec::new()),
                _ => Err("give true or false".to_owned()),
            },
            ArgAction::Count => match text.parse::<u8>() {
                Ok(count) => Ok(repeated(long, count)),
                Err(_) => Err("give a number".to_owned()),
            },
            ArgAction::Append if value.to_str().is_some() => {
                let values = text.split(',');
                Ok(values
                    .map(|value| argument(long, value.trim().as_ref()))
                    .collect())
            }
            _ => Ok(vec![argument(long, &value)]),
        };
        settings.push(Setting::new(command, arg, name, arguments, value)?);
    }
    Ok(settings)
}

/// The options that a file sets.
fn file<'a>(command: &'a Command, path: &Path) -> Result<Vec<Setting<'a>>, Failure> {
    let name = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("--config: can't read {name}: {error}")))?;
    let line = |offset: usize| text[..offset].matches('\n').count() + 1;
    let table = DeTable::parse(&text).map_err(|error| {
        let line = line(error.span().map_or(0, |span| span.start));
        Failure::usage(format!("{name}:{line}: {}", error.message()))
    })?;
    let mut settings = Vec::new();
    for (key, value) in table.get_ref() {
        let origin = format!("{name}:{}: {}", line(key.span().start), key.get_ref());
        let known =
            options(command).find(|&(long, arg)| long == key.get_ref() && arg.get_id() != CONFIG);
        let Some((long, arg)) = known else {
            return Err(Failure::usage(format!(
                "{origin}: unknown key; keys are the names of options, without the dashes in front"
            )));
        };
        let value = value.get_ref();
        let arguments = match (arg.get_action(), value) {
            (ArgAction::SetTrue, DeValue::Boolean(set)) => Ok(repeated(long, u8::from(*set))),
            (ArgAction::SetTrue, _) => Err("give true or false".to_owned()),
            (ArgAction::Count, DeValue::Integer(number)) => number
                .to_string()
                .parse()
                .map(|count| repeated(long, count))
                .map_err(|_| "give a number from 0 to 255".to_owned()),
            (ArgAction::Count, _) => Err("give a number".to_owned()),
            (ArgAction::Append, DeValue::Array(values)) => values
                .iter()
                .map(|value| scalar(long, value.get_ref()))
                .collect(),
            (_, value) => scalar(long, value).map(|argument| vec![argument]),
        };
        settings.push(Setting::new(
            command,
            arg,
            origin,
            arguments,
            OsString::new(),
        )?);
    }
    Ok(settings)
}

/// An argument with a value from a file.
fn scalar(long: &str, value: &DeValue<'_>) -> Result<OsString, String> {
    match value {
        DeValue::String(text) => Ok(argument(long, OsStr::new(text.as_ref()))),
        DeValue::Integer(number) => Ok(argument(long, number.to_string().as_ref())),
        _ => Err("give a string or a whole number".to_owned()),
    }
}

fn argument(long: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{long}="));
    argument.push(value);
    argument
}

fn repeated(long: &str, times: u8) -> Vec<OsString> {
    vec![format!("--{long}").into(); times.into()]
}

/// Whether two options can't be given together.
fn conflict(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |arg: &Arg, other: &Arg| {
        let conflicts = command.get_arg_conflicts_with(arg);
        conflicts.iter().any(|arg| arg.get_id() == other.get_id())
    };
    let share_a_choice = command.get_groups().any(|group| {
        let holds = |arg: &Arg| group.get_args().any(|id| id == arg.get_id());
        !group.clone().is_multiple() && holds(one) && holds(other)
    });
    names(one, other) || names(other, one) || share_a_choice
}
