//! `--service`: `pipe-server` under the service manager.
//!
//! Wine has a service manager, which starts and stops services as that of Windows does. It has no
//! accounts for them: there a service runs as the user of the tests.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{self, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use pipe_server::{Access, Client, ClientOptions, ListenerOptions, Trust};
use support::{DEADLINE, UniqueName, in_time, unique_name, win32::is_wine};
use tokio::sync::Mutex;
use windows_service::{
    service::{
        Service, ServiceAccess, ServiceExitCode, ServiceInfo, ServiceState, ServiceStatus,
        UserEventCode,
    },
    service_manager::{ServiceManager, ServiceManagerAccess},
};

use crate::options::OptionsFile;

const SERVER: &str = env!("CARGO_BIN_EXE_pipe-server");

/// Held by each test that starts a service or tries to be one. Under Wine, a process that connects
/// to the service manager while a service is starting becomes that service, whoever started the
/// process (`HKLM\System\CurrentControlSet\Control\ ServiceCurrent` names the pipe that both meet
/// at).
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Between two looks at the state of a service.
const INTERVAL: Duration = Duration::from_millis(20);

fn run(action: &str, name: &UniqueName, arguments: &[&str]) -> Output {
    Command::new(SERVER)
        .args(["--service", action, "--service-name", &name.text])
        .args(arguments)
        .env_remove("RUST_LOG")
        // Becomes part of the service.
        .env("PIPE_SERVER_MAX_INSTANCES", "7")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The error of a program that ends with this exit code. Its last line: under Wine, warnings come
/// before it.
fn error(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().last().unwrap_or_default().to_owned()
}

/// A service that serves a pipe of its own name. It is removed, with its log, when dropped.
struct Installed {
    name: UniqueName,
    log: PathBuf,
    /// What the installation printed.
    printed: String,
}

impl Installed {
    /// `None` if this user may not install services.
    fn new(arguments: &[&str]) -> Option<Self> {
        let name = unique_name();
        let log = env::temp_dir().join(format!("{}.log", name.text));
        let path = log.to_str().unwrap().to_owned();
        Self::install(name, log, &[&["--log-file", &path], arguments].concat())
    }

    fn install(name: UniqueName, log: PathBuf, arguments: &[&str]) -> Option<Self> {
        let pipe = ["--pipe-name", &name.text];
        let output = run("install", &name, &[&pipe, arguments].concat());
        let service = Self {
            printed: stdout(&output),
            name,
            log,
        };
        if !output.status.success() && error(&output, 1).contains("run this as administrator") {
            println!("skipped: this user is no administrator");
            return None;
        }
        assert!(output.status.success(), "{output:?}");
        Some(service)
    }

    /// Lets the service start with these arguments, as `sc.exe config` does.
    fn change_command_line(&self, arguments: &[&str]) {
        let log = self.log.to_str().unwrap();
        let own = ["--service", "run", "--log-file", log];
        let arguments = [&own, arguments].concat();
        let config = self.open().query_config().unwrap();
        let info = ServiceInfo {
            name: self.name.text.clone().into(),
            display_name: config.display_name,
            service_type: config.service_type,
            start_type: config.start_type,
            error_control: config.error_control,
            executable_path: path::absolute(SERVER).unwrap(),
            launch_arguments: arguments.iter().map(Into::into).collect(),
            dependencies: Vec::new(),
            account_name: config.account_name,
            account_password: None,
        };
        self.open().change_config(&info).unwrap();
    }

    fn open(&self) -> Service {
        let manager =
            ServiceManager::local_computer(None::<&OsStr>, ServiceManagerAccess::CONNECT).unwrap();
        let access = ServiceAccess::START
            | ServiceAccess::STOP
            | ServiceAccess::CHANGE_CONFIG
            | ServiceAccess::QUERY_CONFIG
            | ServiceAccess::QUERY_STATUS
            | ServiceAccess::USER_DEFINED_CONTROL;
        manager.open_service(&self.name.text, access).unwrap()
    }

    async fn client(&self) -> Client {
        // Under Wine it belongs to this user.
        let trust = match is_wine() {
            true => Trust::System,
            false => {
                let (_, sid) = self.printed.trim().rsplit_once(' ').unwrap();
                sid.parse().unwrap()
            }
        };
        let options = ClientOptions::new().trust(trust);
        options.connect(&self.name.text).await.unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        _ = run("remove", &self.name, &[]);
        _ = fs::remove_file(&self.log);
    }
}

async fn wait_for(service: &Service, state: ServiceState) -> ServiceStatus {
    let start = Instant::now();
    loop {
        let status = service.query_status().unwrap();
        if status.current_state == state {
            return status;
        }
        assert!(start.elapsed() < DEADLINE, "{status:?}");
        tokio::time::sleep(INTERVAL).await;
    }
}

#[tokio::test]
async fn a_service_serves_as_soon_as_it_runs_and_drains_when_it_is_stopped() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        // The command of the request asks the test for its reply, which keeps it in flight.
        let gate = unique_name();
        let options = ListenerOptions::new().access(Access::Everyone);
        let mut listener = options.bind(&gate.text).unwrap();
        let client = path::absolute(env!("CARGO_BIN_EXE_pipe-client")).unwrap();
        let command = format!(
            r#""{}" --pipe-name {} --trust anyone"#,
            client.display(),
            gate.text
        );
        let arguments = ["--access", "everyone", "--exec", &command, "--trim-newline"];
        let Some(installed) = Installed::new(&arguments) else {
            return;
        };

        let service = installed.open();
        service.start::<&OsStr>(&[]).unwrap();
        wait_for(&service, ServiceState::Running).await;
        let mut client = installed.client().await;
        let call = tokio::spawn(async move { client.call("hello").await });
        let mut asked = listener.accept().await.unwrap();
        assert_eq!(asked.recv().await.unwrap().unwrap(), "hello");

        service.stop().unwrap();
        let status = wait_for(&service, ServiceState::StopPending).await;
        // The default of --drain-timeout, and a margin.
        assert_eq!(status.wait_hint, Duration::from_secs(15));
        assert!(!call.is_finished());
        asked.send("done").await.unwrap();
        assert_eq!(call.await.unwrap().unwrap(), "done");

        let status = wait_for(&service, ServiceState::Stopped).await;
        assert_eq!(status.exit_code, ServiceExitCode::NO_ERROR);
        let log = installed.log();
        assert!(log.contains("served=1 refused=0 aborted=0"), "{log}");
    })
    .await;
}

#[tokio::test]
async fn a_running_service_is_stopped_and_removed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        // Quotes, spaces and a backslash at the end survive the service manager's command line.
        let reply = r#"say "hi" \"#;
        let Some(installed) = Installed::new(&["--access", "everyone", "--reply", reply]) else {
            return;
        };
        let service = installed.open();
        service.start::<&OsStr>(&[]).unwrap();
        wait_for(&service, ServiceState::Running).await;
        let mut client = installed.client().await;
        assert_eq!(client.call("hello").await.unwrap(), reply);
        // It goes away with the last handle.
        drop(service);

        let output = run("remove", &installed.name, &[]);
        assert!(output.status.success(), "{output:?}");
        assert!(stdout(&output).contains("removed"), "{output:?}");
        assert!(client.recv().await.unwrap().is_none());
        let log = installed.log();
        assert!(log.contains("stopped served=1"), "{log}");

        let line = error(&run("remove", &installed.name, &[]), 1);
        assert!(line.contains(&installed.name.text), "{line}");
        assert!(line.contains("os error 1060"), "{line}");
        assert!(line.contains("--service-name"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_service_logs_its_figures_when_asked() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        let Some(installed) = Installed::new(&["--access", "everyone"]) else {
            return;
        };
        let service = installed.open();
        service.start::<&OsStr>(&[]).unwrap();
        wait_for(&service, ServiceState::Running).await;
        service
            .notify(UserEventCode::from_raw(128).unwrap())
            .unwrap();
        while !installed.log().contains("figures accepted=0") {
            tokio::time::sleep(INTERVAL).await;
        }
        service.stop().unwrap();
        wait_for(&service, ServiceState::Stopped).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_that_fails_reports_its_exit_code_and_logs_why() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        let Some(installed) = Installed::new(&["--access", "sddl:nonsense"]) else {
            return;
        };
        let service = installed.open();
        service.start::<&OsStr>(&[]).unwrap();
        let status = wait_for(&service, ServiceState::Stopped).await;
        assert_eq!(status.exit_code, ServiceExitCode::ServiceSpecific(2));
        let log = installed.log();
        assert!(log.contains("ERROR"), "{log}");
        assert!(log.contains("--access is"), "{log}");
    })
    .await;
}

#[tokio::test]
async fn a_service_whose_log_can_not_be_opened_says_so_with_its_exit_code() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        let Some(installed) = Installed::new(&["--access", "everyone"]) else {
            return;
        };
        fs::remove_file(&installed.log).unwrap();
        fs::create_dir(&installed.log).unwrap();
        let service = installed.open();
        service.start::<&OsStr>(&[]).unwrap();
        let status = wait_for(&service, ServiceState::Stopped).await;
        fs::remove_dir(&installed.log).unwrap();
        assert_eq!(status.exit_code, ServiceExitCode::ServiceSpecific(3));
    })
    .await;
}

/// Lets all users read a file, also a service's account, which has no rights to this user's files.
fn let_everyone_read(file: &str) {
    let mut icacls = Command::new("icacls");
    let output = icacls.args([file, "/grant", "*S-1-1-0:R"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Starts a service that can't read its options, and expects `said` in its log.
async fn fails_to_read(installed: &Installed, said: &str) {
    let service = installed.open();
    service.start::<&OsStr>(&[]).unwrap();
    let status = wait_for(&service, ServiceState::Stopped).await;
    assert_eq!(status.exit_code, ServiceExitCode::ServiceSpecific(2));
    let log = installed.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("ERROR") && last.ends_with(said), "{log}");
}

#[tokio::test]
async fn a_service_with_a_file_of_options_that_is_wrong_or_missing_reports_and_logs_that() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        let file = OptionsFile::new(&unique_name(), "echo = true\n");
        let_everyone_read(file.name());
        let config = ["--config", file.name()];
        let installed = Installed::new(&[&config[..], &["--access", "everyone"]].concat());
        let Some(installed) = installed else {
            return;
        };
        let at_a_console = || {
            let output = Command::new(SERVER).args(config).output().unwrap();
            let line = error(&output, 2);
            line.strip_prefix("pipe-server: ").unwrap().to_owned()
        };

        fs::write(&file.path, "echo = true\nidle_timeout = 1\n").unwrap();
        let said = at_a_console();
        assert!(said.contains(".toml:2: idle_timeout: "), "{said}");
        fails_to_read(&installed, &said).await;

        fs::remove_file(&file.path).unwrap();
        let said = at_a_console();
        assert!(said.starts_with("--config: can't read "), "{said}");
        fails_to_read(&installed, &said).await;
    })
    .await;
}

#[tokio::test]
async fn a_service_with_a_command_line_that_is_wrong_reports_and_logs_that() {
    let _alone = ONE_AT_A_TIME.lock().await;
    in_time(async {
        let Some(installed) = Installed::new(&["--access", "everyone"]) else {
            return;
        };
        for (more, said) in [
            (&["--colour"][..], "unexpected argument '--colour' found"),
            (
                &["--log-format", "xml"],
                "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]",
            ),
            (
                &["--echo", "--reply", "x"],
                "the argument '--echo' cannot be used with '--reply <TEXT>'",
            ),
        ] {
            installed.change_command_line(more);
            fails_to_read(&installed, said).await;
        }
    })
    .await;
}

#[test]
fn a_service_is_installed_once_to_run_as_itself() {
    let Some(installed) = Installed::new(&["--access", "everyone", "--echo"]) else {
        return;
    };
    let own = ["--pipe-name", &installed.name.text, "--access", "everyone"];
    let line = error(&run("install", &installed.name, &own), 1);
    assert!(line.contains(&installed.name.text), "{line}");
    assert!(line.contains("os error 1073"), "{line}");
    assert!(line.contains("--service remove"), "{line}");

    let account = format!(r"NT SERVICE\{}", installed.name.text);
    assert!(
        installed.printed.contains(&account),
        "{}",
        installed.printed
    );
    let config = installed.open().query_config().unwrap();
    assert_eq!(config.account_name, Some(account.into()));
    // The whole command line.
    let command = config.executable_path.to_str().unwrap().to_owned();
    let server = path::absolute(SERVER).unwrap();
    let expected = format!(
        "{} --service run --service-name {} --log-file {} --max-instances=7 --pipe-name {} --access everyone --echo",
        server.display(),
        installed.name.text,
        installed.log.display(),
        installed.name.text,
    );
    assert_eq!(command.replace('"', ""), expected);
}

#[test]
fn without_a_log_file_the_service_logs_among_the_data_of_programs() {
    let name = unique_name();
    let data = PathBuf::from(env::var_os("ProgramData").unwrap());
    let log = data.join("pipe-server").join(format!("{}.log", name.text));
    let Some(installed) = Installed::install(name, log, &["--access", "everyone"]) else {
        return;
    };
    let printed = &installed.printed;
    assert!(
        printed.contains(installed.log.to_str().unwrap()),
        "{printed}"
    );
    assert_eq!(installed.log(), "");
}

#[test]
fn nothing_is_installed_without_a_log() {
    let name = unique_name();
    let directory = env::temp_dir();
    let directory = directory.to_str().unwrap();
    let arguments = ["--access", "everyone", "--log-file", directory];
    let line = error(&run("install", &name, &arguments), 1);
    if line.contains("run this as administrator") {
        println!("skipped: this user is no administrator");
        return;
    }
    assert!(line.contains("--log-file: can't open"), "{line}");
    let line = error(&run("remove", &name, &[]), 1);
    assert!(line.contains("os error 1060"), "{line}");
}

#[test]
fn nothing_is_installed_with_options_that_are_wrong() {
    let name = unique_name();
    for (arguments, said) in [
        (&["--echo"][..], "--access everyone"),
        (
            &[
                "--access",
                "everyone",
                "--engine",
                "tokio",
                "--max-message-size",
                "8KiB",
            ],
            "--max-message-size",
        ),
        (
            &["--access", "everyone", "--pipe-name", r"a\..\b"],
            r"a\..\b",
        ),
    ] {
        let output = run("install", &name, arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(said), "{text}");
    }
    let line = error(&run("remove", &name, &[]), 1);
    assert!(line.contains("os error 1060"), "{line}");
}

/// Every user can read the command line of a service.
#[cfg(feature = "nats")]
#[test]
fn credentials_do_not_become_part_of_a_service() {
    let name = unique_name();
    let forward = "nats://worker:s3cr3t@127.0.0.1/work";
    let command = |arguments: &[&str]| {
        let mut command = Command::new(SERVER);
        command
            .args(["--service", "install", "--service-name", &name.text])
            .args(["--access", "everyone"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    };
    for mut command in [
        command(&["--forward", forward]),
        command(&["--forward=nats://t0k3n@127.0.0.1/work"]),
        command(&["--exec", "fetch https://worker:s3cr3t@127.0.0.1/work"]),
    ] {
        refuses_credentials(command.output().unwrap());
    }
    let mut from_environment = command(&[]);
    from_environment.env("PIPE_SERVER_FORWARD", forward);
    refuses_credentials(from_environment.output().unwrap());
    let line = error(&run("remove", &name, &[]), 1);
    assert!(line.contains("os error 1060"), "{line}");
}

#[cfg(feature = "nats")]
fn refuses_credentials(output: Output) {
    let line = error(&output, 2);
    assert!(line.contains("every user can read"), "{line}");
    assert!(line.contains("--config"), "{line}");
    assert!(
        !line.contains("s3cr3t") && !line.contains("t0k3n"),
        "{line}"
    );
}

#[test]
fn a_service_started_by_a_user_says_how_to_start_it() {
    let _alone = ONE_AT_A_TIME.blocking_lock();
    let name = unique_name();
    let line = error(&run("run", &name, &["--access", "everyone"]), 1);
    assert!(line.contains("os error 1063"), "{line}");
    let start = format!("sc.exe start {}", name.text);
    assert!(line.contains(&start), "{line}");
}

#[test]
fn the_name_of_a_service_needs_no_quotes() {
    for wrong in ["", "a b", r"a\b", "a/b", "ü"] {
        let output = Command::new(SERVER)
            .args(["--service", "remove", "--service-name", wrong])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}: {output:?}");
    }
}
