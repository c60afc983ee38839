//! Installs the service and removes it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::{self, Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use pipe_server::Access;
use pipe_server_cli::{
    credentials::option_with_credentials,
    exit::{Failure, chain},
    runtime,
};
use sha1_smol::Sha1;
use tokio::runtime::Builder;
use windows_service::{
    Error,
    service::{
        Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl,
        ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceSidType,
        ServiceStartType, ServiceState, ServiceType,
    },
    service_manager::{ServiceManager, ServiceManagerAccess},
};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_DUPLICATE_SERVICE_NAME, ERROR_INVALID_LEVEL,
    ERROR_INVALID_SERVICE_ACCOUNT, ERROR_SERVICE_DOES_NOT_EXIST, ERROR_SERVICE_EXISTS,
    ERROR_SERVICE_MARKED_FOR_DELETE, ERROR_SERVICE_NOT_ACTIVE,
};

use super::stop_time;
use crate::{bind_failure, capacity::Capacity, logging, options::Options, pipe_source::PipeSource};

/// When the service is started again after a failure, after the one before it and so on; the last
/// time is for all later failures. A server that can't start, because its name is taken, tries
/// again every minute.
const RESTART_DELAYS: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// After so long without a failure the next one counts as the first again.
const RESET_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

/// How long `--service remove` waits for the service to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it looks. The service manager tells only who registers a callback.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Registers the service that runs this program with `arguments`, and prints what to do next.
pub(super) fn install(options: &Options, arguments: Vec<OsString>) -> Result<(), Failure> {
    check(options)?;
    refuse_credentials(&arguments)?;
    let name = &options.service.name;
    let own_account = format!(r"NT SERVICE\{name}");
    let account = options.service.account.as_ref().unwrap_or(&own_account);
    let sid = sid(name);
    let program = env::current_exe()
        .map_err(|error| Failure::new(format!("can't find out where this program is: {error}")))?;
    let manager = manager(ServiceManagerAccess::CREATE_SERVICE)?;
    let log_file = log_file(options)?;
    let info = ServiceInfo {
        name: name.into(),
        display_name: format!("Message pipe server ({name})").into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program,
        launch_arguments: launch_arguments(arguments, name, &log_file)?,
        dependencies: Vec::new(),
        account_name: Some(account.into()),
        account_password: None,
    };
    // The right to start it is needed for restarts (*ChangeServiceConfig2W function*).
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START | ServiceAccess::DELETE;
    let service = manager
        .create_service(&info, access)
        .map_err(|error| failure("install", name, error))?;
    let configured = configure(&service, options)
        .map_err(|error| failure("configure", name, error))
        .and_then(|()| create(&log_file, options, &sid));
    if let Err(failure) = configured {
        // It exists as a whole or not at all.
        _ = service.delete();
        return Err(failure);
    }

    let mut text = format!(
        "installed the service {name}, which runs as {account} and logs to {}\nstart it with: sc.exe start {name}\n",
        log_file.display()
    );
    if *account == own_account {
        _ = writeln!(text, "its clients need: --trust {sid}");
    }
    // It is installed, whether or not that can be printed.
    _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Stops the service, waits until it has stopped and deletes it.
pub(super) fn remove(name: &str) -> Result<(), Failure> {
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let access = ServiceAccess::STOP | ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE;
    let service = manager
        .open_service(name, access)
        .map_err(|error| failure("open", name, error))?;
    stop(&service, name)?;
    service
        .delete()
        .map_err(|error| failure("delete", name, error))?;
    _ = writeln!(io::stdout(), "removed the service {name}");
    Ok(())
}

fn stop(service: &Service, name: &str) -> Result<(), Failure> {
    let state = || {
        let status = service.query_status();
        status.map_err(|error| failure("ask about", name, error))
    };
    let start = Instant::now();
    let mut asked = false;
    loop {
        let status = state()?;
        match status.current_state {
            ServiceState::Stopped => return Ok(()),
            // It does not take a request while it starts or stops.
            ServiceState::StartPending | ServiceState::StopPending => {}
            _ if asked => {}
            _ => match service.stop() {
                Ok(_) => asked = true,
                Err(Error::Winapi(error)) if is(&error, ERROR_SERVICE_NOT_ACTIVE) => return Ok(()),
                Err(error) => return Err(failure("stop", name, error)),
            },
        }
        if start.elapsed() >= STOP_TIMEOUT {
            let process = status.process_id.unwrap_or_default();
            return Err(Failure::new(format!(
                "the service {name} has not stopped within {STOP_TIMEOUT:?}, and is not deleted: repeat this when its \
                 --drain-timeout is over, or end its process {process}"
            )));
        }
        thread::sleep(STOP_INTERVAL);
    }
}

/// Finds out what is wrong with the options, as far as that does not take the service's account:
/// whether its access list and the name of its pipe are usable shows when it starts.
fn check(options: &Options) -> Result<(), Failure> {
    if options.pipe.access.is_none() {
        return Err(Failure::usage(
            "--service install needs --access, because by default only the account of the service may connect: give \
             --access everyone to admit every user of this machine, or an access list (--access sddl:TEXT)"
                .to_owned(),
        ));
    }
    let source = PipeSource::find(options)?;
    let capacity = Capacity::new(options, &source)?;
    // The limits are checked by the listener, on a pipe that nobody can connect to.
    let listener = options
        .listener()
        .access(Access::CurrentUser)
        .max_instances(capacity.max_instances);
    let name = format!("pipe-server-install-{}", process::id());
    let runtime = Builder::new_current_thread();
    let bound = runtime::run(runtime, options.need_io_driver(), async {
        listener.bind(name).map(drop)
    });
    bound?.map_err(bind_failure)
}

/// Refuses arguments with credentials: they become the `ImagePath` of the service, which every user
/// can read (`sc.exe qc`). What the file of `--config` says does not.
fn refuse_credentials(arguments: &[OsString]) -> Result<(), Failure> {
    let Some(option) = option_with_credentials(arguments) else {
        return Ok(());
    };
    Err(Failure::usage(format!(
        "--service install can't take {option} with a user, a password or a token in its URL, from here or from the \
         environment, because every user can read the command line of a service: put it into a file that only \
         administrators and the service can read, and give that with --config"
    )))
}

/// The file of the log.
fn log_file(options: &Options) -> Result<PathBuf, Failure> {
    if let Some(path) = &options.logging.log_file {
        return absolute(path);
    }
    let data = env::var_os("ProgramData").ok_or_else(|| {
        Failure::new("ProgramData is not set: give a place for the log with --log-file".to_owned())
    })?;
    let file = format!("{}.log", options.service.name);
    Ok(Path::new(&data).join("pipe-server").join(file))
}

/// Creates the file of the log, in a directory that may have to be created too, and lets the
/// service write to it.
fn create(log_file: &Path, options: &Options, sid: &str) -> Result<(), Failure> {
    if let Some(directory) = log_file.parent() {
        fs::create_dir_all(directory).map_err(|error| {
            Failure::new(format!(
                "can't create {} for the log: {error}; give another place with --log-file",
                directory.display()
            ))
        })?;
        if options.logging.log_file.is_none() {
            // Every user may create files among the data of programs, also one that takes the place
            // of a log while it is begun anew. Here only administrators, the system and
            // the services may; the latter own what they create.
            let create_files = format!("*{sid}:(WD)");
            let rights = [
                "/inheritance:r",
                "/grant:r",
                "*S-1-5-32-544:(OI)(CI)F",
                "*S-1-5-18:(OI)(CI)F",
                "*S-1-5-32-545:(OI)(CI)RX",
                "*S-1-3-0:(OI)(CI)(IO)F",
                &create_files,
            ];
            icacls(directory, &rights)?;
        }
    }
    logging::open(log_file, options.logging.log_file_size)?;
    icacls(log_file, &["/grant", &format!("*{sid}:M")])
}

/// What the service manager starts this program with: what the user gave, except that paths do not
/// depend on the directory that this was called in.
fn launch_arguments(
    arguments: Vec<OsString>,
    name: &str,
    log_file: &Path,
) -> Result<Vec<OsString>, Failure> {
    const REPLACED: [&str; 4] = [
        "--service",
        "--service-name",
        "--service-account",
        "--log-file",
    ];
    let mut launch: Vec<OsString> = ["--service", "run", "--service-name", name, "--log-file"]
        .map(OsString::from)
        .to_vec();
    launch.push(log_file.into());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(text) = argument.to_str() else {
            launch.push(argument);
            continue;
        };
        let (option, value) = match text.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (text, None),
        };
        let mut value = || match value {
            Some(value) => value.into(),
            None => arguments.next().unwrap_or_default(),
        };
        if REPLACED.contains(&option) {
            value();
        } else if option == "--config" {
            launch.push("--config".into());
            launch.push(absolute(Path::new(&value()))?.into());
        } else {
            launch.push(argument);
        }
    }
    Ok(launch)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path::absolute(path).map_err(|error| {
        Failure::usage(format!(
            "can't make {} an absolute path: {error}",
            path.display()
        ))
    })
}

fn manager(access: ServiceManagerAccess) -> Result<ServiceManager, Failure> {
    ServiceManager::local_computer(None::<&OsStr>, access).map_err(|error| match error {
        Error::Winapi(error) if is(&error, ERROR_ACCESS_DENIED) => Failure::new(format!(
            "can't open the service manager: {error}; run this as administrator"
        )),
        error => Failure::new(format!(
            "can't open the service manager: {}",
            reason(&error)
        )),
    })
}

fn configure(service: &Service, options: &Options) -> windows_service::Result<()> {
    let actions = RESTART_DELAYS.map(|delay| ServiceAction {
        action_type: ServiceActionType::Restart,
        delay,
    });
    let on_failure = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(RESET_PERIOD),
        reboot_msg: None,
        command: None,
        actions: Some(actions.to_vec()),
    };
    for (what, result) in [
        (
            "a description",
            service.set_description("Answers the messages of a pipe's clients."),
        ),
        // So that access lists can name it, whatever its account is.
        (
            "its own SID",
            service.set_config_service_sid_info(ServiceSidType::Unrestricted),
        ),
        (
            "time to stop before a shutdown",
            service.set_preshutdown_timeout(stop_time(options)),
        ),
        ("restarts", service.update_failure_actions(on_failure)),
        // Not only if the process has died, but also if it has reported that it failed.
        (
            "restarts after an error",
            service.set_failure_actions_on_non_crash_failures(true),
        ),
    ] {
        match result {
            // Windows has them all, Wine does not.
            Err(Error::Winapi(error)) if is(&error, ERROR_INVALID_LEVEL) => {
                _ = writeln!(
                    io::stderr(),
                    "pipe-server: the service goes without {what}, which this system does not have"
                );
            }
            result => result?,
        }
    }
    Ok(())
}

/// Changes who may do what with the log or its directory.
fn icacls(path: &Path, rights: &[&str]) -> Result<(), Failure> {
    let wrong = |problem: &str| {
        Failure::new(format!(
            "can't let the service write to {}: {problem}; give another file with --log-file",
            path.display()
        ))
    };
    // With its path: Windows would look beside this program first.
    let system = env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
    let output = Command::new(Path::new(&system).join(r"System32\icacls.exe"))
        .arg(path)
        .args(rights)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| wrong(&format!("icacls.exe: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(wrong(String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The SID of a service, as `sc.exe showsid` prints it. It is also that of the account `NT
/// SERVICE\NAME`.
fn sid(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    let bytes: Vec<u8> = upper.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut sid = "S-1-5-80".to_owned();
    for part in Sha1::from(bytes).digest().bytes().chunks_exact(4) {
        let number = u32::from_le_bytes([part[0], part[1], part[2], part[3]]);
        _ = write!(sid, "-{number}");
    }
    sid
}

fn failure(action: &str, name: &str, error: Error) -> Failure {
    let text = reason(&error);
    let code = match &error {
        Error::Winapi(error) => error.raw_os_error().unwrap_or_default(),
        _ => 0,
    };
    let cure = match code as u32 {
        ERROR_ACCESS_DENIED => "; run this as administrator",
        ERROR_SERVICE_EXISTS => {
            "; remove it first with --service remove, or give another name with --service-name"
        }
        ERROR_DUPLICATE_SERVICE_NAME => "; give another name with --service-name",
        ERROR_SERVICE_DOES_NOT_EXIST => {
            "; give the name that it was installed with (--service-name), sc.exe query state= all lists them"
        }
        ERROR_SERVICE_MARKED_FOR_DELETE => {
            "; it goes away when every program that has it open closes it, such as the Services window"
        }
        ERROR_INVALID_SERVICE_ACCOUNT => {
            "; give an account without a password with --service-account, or none for the service's own"
        }
        _ => "",
    };
    Failure::new(format!("can't {action} the service {name}: {text}{cure}"))
}

/// The system's reason.
fn reason(error: &Error) -> String {
    match error {
        Error::Winapi(error) => error.to_string(),
        error => chain(error),
    }
}

fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sid_is_the_systems() {
        // *Well-known SIDs*.
        assert_eq!(
            sid("TrustedInstaller"),
            "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
        );
    }

    #[test]
    fn the_service_is_started_with_the_users_options_and_absolute_paths() {
        let given = [
            "--service",
            "install",
            "--config=a.toml",
            "--service-name=x",
            "--reply",
            "a b",
            "--log-file",
            "b.log",
            "--service-account",
            "LocalSystem",
            "--echo",
        ];
        let given = given.map(OsString::from).to_vec();
        let launch = launch_arguments(given, "x", Path::new(r"C:\b.log")).unwrap();
        let config = path::absolute("a.toml").unwrap();
        let config = config.to_str().unwrap();
        let expected = [
            "--service",
            "run",
            "--service-name",
            "x",
            "--log-file",
            r"C:\b.log",
            "--config",
            config,
            "--reply",
            "a b",
            "--echo",
        ];
        assert_eq!(launch, expected);
    }
}
