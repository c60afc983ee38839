//! The command line, and what adds to it: environment variables and a configuration file.
//!
//! Both are turned into arguments, which clap parses like those of the command line. clap's own
//! environment variables only appear in the help: an error in the value of one does not name it, an
//! empty one is a value, and one that conflicts with the command line would be an error. No library
//! for layers knows of conflicting options, and each would need a second parser for every type of
//! value.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process,
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, Id, Parser,
    builder::EnumValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use toml::de::{DeTable, DeValue};

use crate::{escape::escape, exit::Failure, generate::Generate, streams, values};

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

/// Options of features that this build lacks: the program, the option and the feature.
const LACKING: &[(&str, &str, &str)] = &[
    #[cfg(not(feature = "nats"))]
    ("pipe-server", "forward-limit", "nats"),
    #[cfg(not(feature = "interactive"))]
    ("pipe-client", "history", "interactive"),
];

/// What the command line, the environment and the file say.
#[derive(Debug)]
pub struct Parsed<O> {
    pub options: O,
    /// The arguments that have the same effect in another environment: what the environment gives,
    /// followed by the command line's own, without the program.
    pub arguments: Vec<OsString>,
}

/// Parses the command line and the environment. If help, the version or a generated file is asked
/// for, prints it and exits, as it does after bad usage.
pub fn parse<O: Parser>() -> Result<O, Failure> {
    let command = O::command().after_help(after_help::<O>("."));
    Ok(parse_command(command, exit)?.options)
}

/// Parses the command line, the environment and the file that `--config` names, which this adds.
pub fn parse_with_file<O: Parser>() -> Result<Parsed<O>, Failure> {
    parse_command(command_with_file::<O>(), exit)
}

/// The same for a program whose stderr nobody reads: bad usage is a failure as well.
pub fn parse_unattended<O: Parser>() -> Result<Parsed<O>, Failure> {
    parse_command(command_with_file::<O>(), in_one_line)
}

/// What the command line alone gives, up to what is wrong in it, and the defaults of other options.
/// `None` if it asks for help or the version.
pub fn given<O: Parser>() -> Option<ArgMatches> {
    let command = command_with_file::<O>().ignore_errors(true);
    command.try_get_matches().ok()
}

fn command_with_file<O: Parser>() -> Command {
    let mut forms = vec!["An option without a value is true or false"];
    let command = O::command();
    if has(&command, |action| matches!(action, ArgAction::Append)) {
        forms.push("one that can be repeated a list");
    }
    if has(&command, |action| matches!(action, ArgAction::Count)) {
        forms.push("verbose a number");
    }
    let file = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(values::path())
        .help("Take options from FILE, in TOML")
        .long_help(format!(
            "Take options from FILE, in TOML\n\nIts keys are the names of the options, as in pipe-name = \"a\". {}.",
            forms.join(", ")
        ));
    let precedence = ", and the environment over the file of --config.";
    command.after_help(after_help::<O>(precedence)).arg(file)
}

fn after_help<O: Parser>(precedence: &str) -> String {
    let command = O::command();
    let own = command.get_after_help().map(ToString::to_string);
    let own = own.unwrap_or_default();
    let mut forms = Vec::new();
    if has(&command, |action| matches!(action, ArgAction::SetTrue)) {
        forms.push("true or false for an option without a value");
    }
    if has(&command, |action| matches!(action, ArgAction::Count)) {
        forms.push("a number for -v");
    }
    if has(&command, |action| matches!(action, ArgAction::Append)) {
        forms.push("values with commas between them for an option that can be repeated");
    }
    format!(
        "{own}\nEach option can be given by its environment variable as well: {}. An empty variable is ignored. The \
         command line takes precedence over the environment{precedence}",
        forms.join(", ")
    )
}

/// Whether a program has an option of this kind, which can also be set elsewhere.
fn has(command: &Command, is_kind: fn(&ArgAction) -> bool) -> bool {
    options(command).any(|(_, arg)| is_kind(arg.get_action()))
}

/// Describes an option of a feature that this build lacks, if `long` is one.
fn lacking(command: &Command, long: &str) -> Option<Failure> {
    let program = command.get_name();
    let mut lacking = LACKING.iter();
    let (_, _, feature) = lacking.find(|option| (option.0, option.1) == (program, long))?;
    Some(Failure::usage(format!(
        "--{long}: this {program} was built without it: build it with --features {feature}"
    )))
}

/// The same for an option that clap does not know.
fn lacking_argument(command: &Command, error: &clap::Error) -> Option<Failure> {
    match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(argument) if error.kind() == ErrorKind::UnknownArgument => {
            lacking(command, argument.strip_prefix("--")?)
        }
        _ => None,
    }
}

/// Parses all layers. `refuse` handles an error that clap finds in all of them together, with a
/// note on where else than on the command line options are from.
fn parse_command<O: Parser>(
    command: Command,
    refuse: fn(clap::Error, Option<String>) -> Failure,
) -> Result<Parsed<O>, Failure> {
    let command = command.no_binary_name(true);
    let own: Vec<OsString> = env::args_os().skip(1).collect();
    // Without the option itself: the completions of bash have hidden options too.
    let described = with_variables(command.clone());
    let generate = Arg::new(GENERATE)
        .long(GENERATE)
        .value_name("WHAT")
        .value_parser(EnumValueParser::<Generate>::new())
        .exclusive(true)
        .hide(true);
    let command = command.arg(&generate);

    // What the command line gives, whether or not it is complete.
    let Ok(given) = parse_leniently(&command, &own) else {
        // Help or the version.
        if let Err(help) = described.arg(generate).try_get_matches_from(&own) {
            show(&help)?;
        }
        process::exit(0);
    };
    if let Some(&what) = given.try_get_one::<Generate>(GENERATE).ok().flatten() {
        what.print(described)?;
        process::exit(0);
    }

    let is_given = |id: &&Id| given.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    let mut layers = Layers {
        command: &command,
        decided: given.ids().filter(is_given).cloned().collect(),
        arguments: own,
        origins: Vec::new(),
    };
    layers.add(environment(&command)?);
    let portable = layers.arguments.clone();
    let given = parse_leniently(&command, &portable).ok();
    let path = given
        .as_ref()
        .and_then(|given| given.try_get_one::<PathBuf>(CONFIG).ok()?);
    if let Some(path) = path {
        layers.add(file(&command, path)?);
    }

    let matches = command.clone().try_get_matches_from(&layers.arguments);
    let options = matches.and_then(|mut matches| O::from_arg_matches_mut(&mut matches));
    let options = options.map_err(|error| {
        let note = is_combination(&error) && !layers.origins.is_empty();
        let note = note.then(|| format!("options are also set by {}", layers.origins.join(", ")));
        lacking_argument(&command, &error).unwrap_or_else(|| refuse(error, note))
    })?;
    Ok(Parsed {
        options,
        arguments: portable,
    })
}

fn parse_leniently(command: &Command, arguments: &[OsString]) -> clap::error::Result<ArgMatches> {
    let lenient = command.clone().ignore_errors(true);
    lenient.try_get_matches_from(arguments)
}

/// Prints help or the version. clap's own way to do so ignores that it can't be printed.
fn show(help: &clap::Error) -> Result<(), Failure> {
    if help.use_stderr() {
        help.exit();
    }
    let terminal = io::stdout().is_terminal();
    // Consoles need more than the escapes.
    if cfg!(windows) && terminal {
        return help.print().map_err(streams::write_failure);
    }
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let plain = is_set("NO_COLOR") || env::var_os("TERM").is_none_or(|kind| kind == "dumb");
    let text = match terminal && !plain {
        true => help.render().ansi().to_string(),
        false => help.render().to_string(),
    };
    streams::print(text.as_bytes())
}

/// Prints what clap says, with the usage and hints, and exits.
fn exit(error: clap::Error, note: Option<String>) -> Failure {
    _ = error.print();
    if let Some(note) = note {
        _ = writeln!(io::stderr(), "\nnote: {}", escape(&note));
    }
    process::exit(error.exit_code())
}

/// What clap says in one line, without the usage and hints.
fn in_one_line(error: clap::Error, note: Option<String>) -> Failure {
    let note = note.map(|note| format!("; {note}")).unwrap_or_default();
    Failure::usage(format!("{}{note}", problem(&error)))
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

/// The command line, and below it what other layers add.
struct Layers<'a> {
    command: &'a Command,
    /// Options that are given, or turned off, by one of the layers.
    decided: Vec<Id>,
    arguments: Vec<OsString>,
    /// Where the settings that were added are from.
    origins: Vec<String>,
}

impl Layers<'_> {
    /// Adds a layer below the others: what those decide, or what conflicts with them, is left out.
    fn add(&mut self, mut settings: Vec<Setting>) {
        settings.retain(|setting| {
            !self.decided.contains(&setting.id) && !self.conflict_with(&setting.arguments)
        });
        let own = std::mem::take(&mut self.arguments);
        for setting in settings {
            self.decided.push(setting.id);
            self.arguments.extend(setting.arguments);
            self.origins.push(setting.origin);
        }
        self.arguments.extend(own);
    }

    fn conflict_with(&self, arguments: &[OsString]) -> bool {
        let all = arguments.iter().chain(&self.arguments);
        let parsed = self.command.clone().try_get_matches_from(all);
        parsed.is_err_and(|error| error.kind() == ErrorKind::ArgumentConflict)
    }
}

/// An option from elsewhere than the command line.
struct Setting {
    id: Id,
    /// Where it is from, for errors.
    origin: String,
    /// Empty if it turns the option off.
    arguments: Vec<OsString>,
}

impl Setting {
    /// Fails if the values are wrong.
    fn new(
        command: &Command,
        arg: &Arg,
        origin: String,
        values: Result<Vec<OsString>, &str>,
    ) -> Result<Self, Failure> {
        let wrong = |problem: &str| Failure::usage(format!("{origin}: {problem}"));
        let arguments = values
            .and_then(|values| arguments(arg, &values))
            .map_err(wrong)?;
        // Alone, so that what is wrong is this value. Options that it requires may follow.
        match command.clone().try_get_matches_from(&arguments) {
            Err(error) if !is_combination(&error) => Err(wrong(&problem(&error))),
            _ => Ok(Self {
                id: arg.get_id().clone(),
                origin,
                arguments,
            }),
        }
    }
}

/// The arguments that give an option these values.
fn arguments(arg: &Arg, values: &[OsString]) -> Result<Vec<OsString>, &'static str> {
    let long = arg.get_long().unwrap_or_default();
    let first = values.first().and_then(|value| value.to_str());
    let times = match arg.get_action() {
        ArgAction::SetTrue => match first.unwrap_or_default().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => 1,
            "false" | "no" | "off" | "0" => 0,
            _ => return Err("give true or false"),
        },
        ArgAction::Count => match first.unwrap_or_default().parse::<u8>() {
            Ok(count) => usize::from(count),
            Err(_) => return Err("give a number from 0 to 255"),
        },
        _ => {
            let with_name = |value: &OsString| {
                let mut argument = OsString::from(format!("--{long}="));
                argument.push(value);
                argument
            };
            return Ok(values.iter().map(with_name).collect());
        }
    };
    Ok(vec![format!("--{long}").into(); times])
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
fn environment(command: &Command) -> Result<Vec<Setting>, Failure> {
    for (_, long, _) in LACKING {
        if env::var_os(variable(command, long)).is_some_and(|value| !value.is_empty()) {
            lacking(command, long).map_or(Ok(()), Err)?;
        }
    }
    let mut settings = Vec::new();
    for (long, arg) in options(command) {
        let name = variable(command, long);
        let Some(value) = env::var_os(&name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let values = match (arg.get_action(), value.to_str()) {
            (ArgAction::Append, Some(text)) => {
                text.split(',').map(|value| value.trim().into()).collect()
            }
            (ArgAction::SetTrue | ArgAction::Count, Some(text)) => vec![text.trim().into()],
            _ => vec![value],
        };
        settings.push(Setting::new(command, arg, name, Ok(values))?);
    }
    Ok(settings)
}

/// The options that a file sets.
fn file(command: &Command, path: &Path) -> Result<Vec<Setting>, Failure> {
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
        let known = options(command).find(|&(long, _)| long == key.get_ref() && long != CONFIG);
        let Some((_, arg)) = known else {
            return Err(lacking(command, key.get_ref()).unwrap_or_else(|| {
                Failure::usage(format!(
                    "{origin}: unknown key; keys are the names of options, without the dashes in front"
                ))
            }));
        };
        let values = match (arg.get_action(), value.get_ref()) {
            (ArgAction::SetTrue, DeValue::Boolean(set)) => Ok(vec![set.to_string().into()]),
            (ArgAction::SetTrue, _) => Err("give true or false"),
            (ArgAction::Count, DeValue::Integer(count)) => Ok(vec![count.to_string().into()]),
            (ArgAction::Count, _) => Err("give a number from 0 to 255"),
            (ArgAction::Append, DeValue::Array(values)) => {
                values.iter().map(|value| scalar(value.get_ref())).collect()
            }
            (_, value) => scalar(value).map(|value| vec![value]),
        };
        settings.push(Setting::new(command, arg, origin, values)?);
    }
    Ok(settings)
}

/// The text of a value in a file.
fn scalar(value: &DeValue<'_>) -> Result<OsString, &'static str> {
    match value {
        DeValue::String(text) => Ok(OsStr::new(text.as_ref()).to_owned()),
        DeValue::Integer(number) => Ok(number.to_string().into()),
        _ => Err("give a string or a whole number"),
    }
}
