//! Options from elsewhere than the command line, and what is generated from them.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use support::{UniqueName, unique_name};

use crate::program::{Server, server, stderr};

const SERVER: &str = env!("CARGO_BIN_EXE_pipe-server");
const CLIENT: &str = env!("CARGO_BIN_EXE_pipe-client");

/// All programs, by their names.
fn programs() -> Vec<(&'static str, &'static str)> {
    vec![
        ("pipe-server", SERVER),
        ("pipe-client", CLIENT),
        ("pipe-list", env!("CARGO_BIN_EXE_pipe-list")),
        #[cfg(feature = "bench")]
        ("pipe-bench", env!("CARGO_BIN_EXE_pipe-bench")),
    ]
}

fn run(program: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a client prints that gets its options from variables as well.
fn reply(name: &UniqueName, variables: &[(&str, &str)], arguments: &[&str]) -> String {
    let pipe = ["--pipe-name", &name.text];
    let output = run(CLIENT, variables, &[&pipe, arguments].concat());
    assert!(output.status.success(), "{output:?}");
    stdout(&output)
}

/// A file with options that exists until it is dropped.
pub(crate) struct OptionsFile {
    pub(crate) path: PathBuf,
}

impl OptionsFile {
    pub(crate) fn new(name: &UniqueName, text: &str) -> Self {
        let file = format!("{}.toml", name.text.replace(['/', '\\'], "-"));
        let path = std::env::temp_dir().join(file);
        fs::write(&path, text).unwrap();
        Self { path }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for OptionsFile {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}

#[test]
fn a_number_of_threads_that_is_out_of_range_is_bad_usage() {
    let name = unique_name();
    for number in ["0", "-1", "two", "", "2.5", "10000000000000"] {
        let mut command = server(&name, &[]);
        command.env("TOKIO_WORKER_THREADS", number);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{number:?}: {said}");
        assert_eq!(
            said.trim_end(),
            format!(
                "pipe-server: TOKIO_WORKER_THREADS must be a number from 1 to 65535, and is {number:?}"
            )
        );
    }
}

#[test]
fn a_variable_gives_an_option() {
    let name = unique_name();
    let mut command = server(&name, &[]);
    command.env("PIPE_SERVER_REPLY", "from the environment");
    let _server = Server::spawn(&mut command);
    assert_eq!(
        reply(&name, &[("PIPE_CLIENT_HEX", "true")], &["61"]),
        format!("{}\n", hex_of("from the environment"))
    );
    for off in ["false", "0", "no", "OFF", ""] {
        assert_eq!(
            reply(&name, &[("PIPE_CLIENT_HEX", off)], &["61"]),
            "from the environment\n"
        );
    }
    let pipe = [("PIPE_CLIENT_PIPE_NAME", name.text.as_str())];
    let output = run(CLIENT, &pipe, &["hello"]);
    assert_eq!(stdout(&output), "from the environment\n", "{output:?}");
}

fn hex_of(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_wrong_value_names_its_variable() {
    for (program, variable, value, said) in [
        (SERVER, "PIPE_SERVER_IDLE_TIMEOUT", "soon", "'soon'"),
        (SERVER, "PIPE_SERVER_ECHO", "perhaps", "true or false"),
        (SERVER, "PIPE_SERVER_VERBOSE", "much", "a number"),
        (SERVER, "PIPE_SERVER_LOG_FORMAT", "xml", "text, json"),
        (SERVER, "PIPE_SERVER_ALLOW_USER", "root", "'root'"),
        (CLIENT, "PIPE_CLIENT_REPEAT", "0", "'0'"),
    ] {
        let output = run(program, &[(variable, value)], &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = stderr(&output);
        assert!(line.contains(&format!("{variable}: ")), "{line}");
        assert!(line.contains(said), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[test]
fn a_list_in_a_variable_has_commas() {
    let (own, other) = match pipe_server::Peer::current().unwrap().user() {
        #[cfg(unix)]
        pipe_server::UserId::Uid(uid) => (uid.to_string(), "4294967294"),
        #[cfg(windows)]
        pipe_server::UserId::Sid(sid) => (sid.clone(), "S-1-5-7"),
        other => panic!("{other}"),
    };
    let name = unique_name();
    let mut command = server(&name, &["--echo"]);
    command.env("PIPE_SERVER_ALLOW_USER", format!("{other}, {own}"));
    let _server = Server::spawn(&mut command);
    assert_eq!(reply(&name, &[], &["hello"]), "hello\n");
}

#[test]
fn the_command_line_is_over_the_environment_and_that_over_the_file() {
    let name = unique_name();
    let file = OptionsFile::new(&name, "reply = \"from the file\"\nmax-instances = 3\n");
    for (variables, arguments, answer) in [
        (&[][..], &[][..], "from the file\n"),
        (
            &[("PIPE_SERVER_REPLY", "environment")],
            &[],
            "environment\n",
        ),
        (
            &[("PIPE_SERVER_REPLY", "environment")],
            &["--reply", "here"],
            "here\n",
        ),
        // Options that conflict with a reply.
        (&[("PIPE_SERVER_ECHO", "true")], &[], "hello\n"),
        (
            &[("PIPE_SERVER_REPLY", "environment")],
            &["--echo"],
            "hello\n",
        ),
        (&[("PIPE_SERVER_ECHO", "false")], &[], "from the file\n"),
    ] {
        let name = unique_name();
        let config = ["--config", file.name()];
        let mut command = server(&name, &[&config, arguments].concat());
        command.envs(variables.iter().copied());
        let _server = Server::spawn(&mut command);
        assert_eq!(reply(&name, &[], &["hello"]), answer);
    }
}

#[test]
fn a_file_gives_every_kind_of_option() {
    let name = unique_name();
    let user = match pipe_server::Peer::current().unwrap().user() {
        #[cfg(unix)]
        pipe_server::UserId::Uid(uid) => uid.to_string(),
        #[cfg(windows)]
        pipe_server::UserId::Sid(sid) => format!("{sid:?}"),
        other => panic!("{other}"),
    };
    let text = format!(
        "# Comments are allowed.\necho = true\nquiet = false\nverbose = 1\nmax-instances = 7\n\
         max-buffered-bytes = \"64MiB\"\nidle-timeout = \"10min\"\nallow-user = [{user}]\n"
    );
    let file = OptionsFile::new(&name, &text);
    let mut command = server(&name, &[]);
    command.env("PIPE_SERVER_CONFIG", file.name());
    let server = Server::spawn(command.stderr(Stdio::piped()));
    assert_eq!(reply(&name, &[], &["hello"]), "hello\n");
    // Of -v.
    server.log().wait_for("DEBUG");

    let file = OptionsFile::new(&name, "json = true\n");
    let line = reply(&name, &[], &["--config", file.name(), "hello"]);
    assert!(line.contains("\"text\":\"hello\""), "{line}");
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line() {
    let name = unique_name();
    for (text, line, said) in [
        ("\n\nidle-timeout = \"soon\"", 3, "idle-timeout: "),
        ("idle_timeout = \"1s\"", 1, "idle_timeout: unknown key"),
        ("echo = true\nconfig = \"x\"", 2, "config: unknown key"),
        ("echo = \"yes\"", 1, "echo: give true or false"),
        ("verbose = 256", 1, "verbose: give a number from 0 to 255"),
        ("allow-user = [1.5]", 1, "allow-user: give a string"),
        ("[pipe]\necho = true", 1, "pipe: unknown key"),
        ("echo = true\n\necho = true", 3, "duplicate key"),
        ("\nreply = unquoted", 2, "quoted"),
    ] {
        let file = OptionsFile::new(&name, text);
        let output = run(SERVER, &[], &["--config", file.name()]);
        assert_eq!(output.status.code(), Some(2), "{text}: {output:?}");
        let error = stderr(&output);
        let place = format!("{}:{line}: ", file.name());
        assert!(error.contains(&place), "{error}");
        assert!(error.contains(said), "{error}");
    }
    let output = run(SERVER, &[], &["--config", "/no/such/file"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("/no/such/file"), "{output:?}");
}

#[test]
fn options_that_conflict_within_a_file_say_where_they_are_from() {
    let name = unique_name();
    let file = OptionsFile::new(&name, "echo = true\nreply = \"x\"\n");
    let output = run(SERVER, &[], &["--config", file.name()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = stderr(&output);
    assert!(error.contains("--echo"), "{error}");
    assert!(
        error.contains(&format!("{}:2: reply", file.name())),
        "{error}"
    );
}

#[test]
fn help_names_the_variables_and_does_not_read_them() {
    for (name, program) in programs() {
        let option = if name == "pipe-list" {
            "JSON"
        } else {
            "PIPE_NAME"
        };
        let variable = format!("{}_{option}", name.replace('-', "_").to_uppercase());
        let output = run(program, &[(&variable, "a\\b")], &["--help"]);
        assert!(output.status.success(), "{output:?}");
        let help = stdout(&output);
        assert!(help.contains(&format!("[env: {variable}]")), "{help}");
        assert!(!help.contains("a\\b"), "{help}");
    }
}

#[test]
fn a_version_names_its_program() {
    for (name, program) in programs() {
        let output = run(program, &[], &["--version"]);
        let line = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(stdout(&output), line);
    }
}

#[test]
fn completions_and_the_manual_page_are_generated_for_every_program() {
    for (name, program) in programs() {
        for (what, part) in [
            ("bash", "complete -F"),
            ("fish", "complete -c"),
            ("man", ".TH"),
            ("powershell", "Register-ArgumentCompleter"),
            ("zsh", "#compdef"),
        ] {
            let output = run(program, &[], &["--generate", what]);
            assert!(output.status.success(), "{what}: {output:?}");
            let file = stdout(&output);
            assert!(file.contains(part), "{file}");
            assert!(file.contains(name), "{file}");
            let option = if name == "pipe-list" {
                "json"
            } else {
                "pipe-name"
            };
            // In roff, hyphens are escaped.
            assert!(file.replace('\\', "").contains(option), "{file}");
            assert!(!file.contains("generate"), "{file}");
        }
        let output = run(program, &[], &["--generate", "pdf"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn the_synopsis_of_a_manual_page_has_the_values_of_options() {
    for (name, program) in programs() {
        let page = stdout(&run(program, &[], &["--generate", "man"]));
        let page = page.replace("\\fB", "").replace("\\fI", "");
        let page = page.replace("\\fR", "").replace('\\', "");
        let synopsis = page.split(".SH ").find(|part| part.starts_with("SYNOPSIS"));
        let synopsis = synopsis.unwrap();
        let options: &[&str] = match name {
            "pipe-server" => &[
                "[--pipe-name NAME]",
                "[--max-instances N|unlimited]",
                "[--allow-user ",
                "[--echo]",
            ],
            "pipe-client" => &["[--file FILE]...", "[--repeat N]", "[MESSAGE]", "[--ping]"],
            "pipe-list" => &["[--json]"],
            _ => &["[--clients C]", "[--warm-up N|TIME]", "[--json]"],
        };
        for option in options {
            assert!(synopsis.contains(option), "{option}: {synopsis}");
        }
    }
}

/// Options in the manual of another system, of a feature that this build may lack, and of cargo.
const ELSEWHERE: [&str; 16] = [
    "--allow-remote",
    "--engine",
    "--fd-name",
    "--features",
    "--forward",
    "--forward-limit",
    "--generate",
    "--history",
    "--interactive",
    "--locked",
    "--path",
    "--service",
    "--service-account",
    "--service-name",
    "--socket-group",
    "--verbose",
];

/// The words of `text` that are long options.
fn options_in(text: &str) -> BTreeSet<&str> {
    text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '-'))
        .filter(|word| word.starts_with("--") && word.len() > 2 && !word.starts_with("---"))
        .collect()
}

#[test]
fn the_manual_has_the_options_of_the_programs_and_no_others() {
    let manual = options_in(include_str!("../../README.md"));
    let mut known = BTreeSet::from(ELSEWHERE.map(str::to_owned));
    for (name, program) in programs() {
        let help = stdout(&run(program, &[], &["-h"]));
        for option in options_in(&help) {
            let told = manual.contains(option) || ["--version", "--verbose"].contains(&option);
            assert!(told, "cli/README.md does not have {option} of {name}");
            known.insert(option.to_owned());
        }
    }
    #[cfg(feature = "bench")]
    for option in manual {
        assert!(
            known.contains(option),
            "no program has {option}, which cli/README.md has"
        );
    }
}

/// The text of the help below the options.
fn after_help(program: &str, width: usize) -> Vec<String> {
    let mut command = Command::new(program);
    let command = command.arg("--help").env("COLUMNS", width.to_string());
    let help = stdout(&command.output().unwrap());
    let lines: Vec<_> = help.lines().map(str::to_owned).collect();
    let last_option = lines.iter().rposition(|line| line.starts_with(' '));
    lines[last_option.unwrap() + 1..].to_vec()
}

#[test]
fn the_text_of_the_help_is_wrapped_once() {
    for (_, program) in programs() {
        for width in [60, 80, 100] {
            let lines = after_help(program, width);
            for (line, next) in lines.iter().zip(&lines[1..]) {
                let first_word = next.split(' ').next().unwrap();
                let full = line.len() + 1 + first_word.len() > width;
                assert!(
                    line.is_empty() || line.ends_with('.') || full,
                    "{width}: {lines:#?}"
                );
            }
        }
    }
}

#[test]
fn the_help_speaks_only_of_options_that_there_are() {
    for (name, program) in programs() {
        let text = after_help(program, 100).join(" ");
        assert_eq!(text.contains("-v"), name == "pipe-server", "{text}");
        let help = stdout(&run(program, &[], &["--help"]));
        assert_eq!(help.contains("verbose"), name == "pipe-server", "{help}");
    }
    let list = after_help(programs()[2].1, 100).join(" ");
    assert!(!list.contains("repeated"), "{list}");
}

/// Wherever it is given.
#[cfg(not(feature = "nats"))]
#[test]
fn an_option_of_a_feature_that_this_build_lacks_says_so() {
    let name = unique_name();
    let file = OptionsFile::new(&name, "forward = \"nats://user:secret@localhost/x\"\n");
    let url = "nats://user:secret@localhost/x";
    for (variables, arguments) in [
        (&[][..], &["--forward", url][..]),
        (&[], &["--forward-limit=1"]),
        (&[("PIPE_SERVER_FORWARD", url)], &[]),
        (&[], &["--config", file.name()]),
    ] {
        let output = run(SERVER, variables, arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = stderr(&output);
        assert!(line.contains("build it with --features nats"), "{line}");
        assert!(!line.contains("secret"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[cfg(not(feature = "interactive"))]
#[test]
fn a_history_without_a_prompt_says_so() {
    let output = run(CLIENT, &[], &["--history", "x"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let line = stderr(&output);
    assert!(
        line.contains("build it with --features interactive"),
        "{line}"
    );
}

/// As of `--pipe-name=~/x` and of the file of `--config`.
#[cfg(unix)]
#[test]
fn a_home_directory_that_the_shell_left_alone_is_bad_usage() {
    let name = unique_name();
    let file = OptionsFile::new(&name, "pipe-name = \"~/x\"\n");
    for (program, arguments) in [
        (SERVER, &["--pipe-name=~/x"][..]),
        (SERVER, &["--pipe-name=~root/x"]),
        (SERVER, &["--log-file=~/x"]),
        (SERVER, &["--config=~/x"]),
        (SERVER, &["--config", file.name()]),
        (CLIENT, &["--pipe-name=~/x", "hello"]),
        (CLIENT, &["--file=~/x"]),
    ] {
        let output = run(program, &[], arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let said = stderr(&output);
        assert!(said.contains("$HOME"), "{arguments:?}: {said}");
    }
    // Such a directory can still be meant.
    let output = run(SERVER, &[], &["--pipe-name=./~/x"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
