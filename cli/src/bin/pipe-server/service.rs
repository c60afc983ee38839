//! `--service`: this server as a Windows service.

use std::{ffi::OsString, process::ExitCode, sync::OnceLock, time::Duration};

use clap::{FromArgMatches as _, Parser as _};
use pipe_server_cli::{
    command_line::{self, Parsed},
    exit::{Failure, chain},
    mutex::Mutex,
};
use tokio::sync::Notify;
use tracing::error;
use windows_service::{
    Error, define_windows_service,
    service::{
        ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus,
        ServiceType,
    },
    service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle},
    service_dispatcher,
};
use windows_sys::Win32::Foundation::ERROR_FAILED_SERVICE_CONTROLLER_CONNECT;

use self::install::{install, remove};
use crate::{
    logging,
    options::{LoggingOptions, Options, ServiceAction},
    pipe_source::PipeSource,
};

mod install;

/// How long the service may take until clients can connect. It takes milliseconds.
const START_TIME: Duration = Duration::from_secs(10);

/// How long the service may take to stop, beyond the drain.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The service manager wants to know a time, also if `--drain-timeout` is none.
const LONGEST_STOP: Duration = Duration::from_secs(60 * 60);

/// The service-specific exit code if the file of the log can't be opened. That of any other
/// failure, which is logged, is the exit code that the program would have had.
const NO_LOG: u8 = 3;

/// The control that logs the figures: `sc.exe control NAME 128`.
const FIGURES: u32 = 128;

/// Where [`service_main`], which the system calls without a context, logs that it has no options.
static LOGGING: Mutex<Option<LoggingOptions>> = Mutex::new(None);

/// This process as a service, if it is one. The service manager starts one process per service.
static SERVICE: OnceLock<Service> = OnceLock::new();

define_windows_service!(entry, service_main);

/// What the command line says of the service that this process is to be.
#[derive(Debug)]
pub(crate) struct ServiceArguments {
    name: String,
    logging: LoggingOptions,
}

/// Whether this process is to be a service (`--service run`). Nothing else is read yet: only a
/// process that has connected to the service manager can tell it what is wrong.
pub(crate) fn given() -> Option<ServiceArguments> {
    let matches = command_line::given::<Options>()?;
    if matches.get_one("action") != Some(&ServiceAction::Run) {
        return None;
    }
    let logging = LoggingOptions::from_arg_matches(&matches);
    Some(ServiceArguments {
        name: matches.get_one("name").cloned().unwrap_or_default(),
        // If one of them is wrong, the place of the log is enough.
        logging: logging.unwrap_or_else(|_| LoggingOptions {
            log_file: matches.get_one("log_file").cloned(),
            ..Options::parse_from(["pipe-server"]).logging
        }),
    })
}

/// Does what `--service` asks for.
pub(crate) fn perform(action: ServiceAction, parsed: Parsed<Options>) -> Result<ExitCode, Failure> {
    match action {
        ServiceAction::Install => install(&parsed.options, parsed.arguments)?,
        ServiceAction::Remove => remove(&parsed.options.service.name)?,
        ServiceAction::Run => unreachable!("it is given by the command line alone"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The service that this process is.
pub(crate) fn current() -> Option<&'static Service> {
    SERVICE.get()
}

/// Reports to the service manager, if there is one, that clients can connect.
pub(crate) fn ready() {
    if let Some(service) = current() {
        service.report(ServiceState::Running);
    }
}

/// How long a service with these options takes to stop at most.
fn stop_time(options: &Options) -> Duration {
    let drain = options.limits.drain_timeout.0.unwrap_or(LONGEST_STOP);
    drain.saturating_add(STOP_MARGIN).min(LONGEST_STOP)
}

/// Runs the service in this process, which the service manager has started, until it has stopped.
pub(crate) fn run(given: ServiceArguments) -> Result<(), Failure> {
    let name = given.name;
    *LOGGING.lock() = Some(given.logging);
    // The system ignores the name in a process of one service.
    service_dispatcher::start(&name, entry).map_err(|error| match error {
        Error::Winapi(error)
            if error.raw_os_error() == Some(ERROR_FAILED_SERVICE_CONTROLLER_CONNECT as i32) =>
        {
            Failure::new(format!(
                "--service run is for the service manager, which has not started this process: install the service \
                 with --service install and start it with sc.exe start {name}, or leave --service out to serve from \
                 here ({error})"
            ))
        }
        error => Failure::new(format!(
            "can't connect to the service manager: {}",
            chain(&error)
        )),
    })
}

/// The service, on a thread of its own. The first argument is its name.
fn service_main(arguments: Vec<OsString>) {
    let name = arguments.into_iter().next().unwrap_or_default();
    // Without it nothing can be reported. The service manager sees that, and gives up.
    let Ok(status) = service_control_handler::register(name, control) else {
        return;
    };
    send(&status, ServiceState::StartPending, 0, START_TIME);
    let options = command_line::parse_unattended().map(|parsed| parsed.options);
    let service = SERVICE.get_or_init(|| Service {
        status: Mutex::new(Some(status)),
        stop: Notify::new(),
        figures: Notify::new(),
        stop_time: options.as_ref().map_or(STOP_MARGIN, stop_time),
    });
    let code = serve(options);
    service.report_end(code);
}

/// Serves until the service is stopped. The exit code.
fn serve(options: Result<Options, Failure>) -> u8 {
    let given = LOGGING.lock().take();
    let logging = match &options {
        Ok(options) => Some(&options.logging),
        Err(_) => given.as_ref(),
    };
    let Some(Ok(_log)) = logging.map(logging::start) else {
        return NO_LOG;
    };
    let ended = options.and_then(|options| {
        let source = PipeSource::find(&options)?;
        crate::run(options, source)
    });
    match ended {
        Ok(_) => 0,
        Err(failure) => {
            error!("{}", failure.message());
            failure.code()
        }
    }
}

/// Called by the system for each request of the service manager, one at a time.
///
/// Not a closure: what it captured would be freed after the first stop, even if another one follows
/// (`windows-service`'s `service_control_handler`).
fn control(control: ServiceControl) -> ServiceControlHandlerResult {
    match control {
        ServiceControl::Interrogate => {}
        ServiceControl::Stop | ServiceControl::Preshutdown | ServiceControl::Shutdown => {
            if let Some(service) = current() {
                service.report(ServiceState::StopPending);
                service.stop.notify_one();
            }
        }
        ServiceControl::UserEvent(code) if code.to_raw() == FIGURES => {
            if let Some(service) = current() {
                service.figures.notify_one();
            }
        }
        _ => return ServiceControlHandlerResult::NotImplemented,
    }
    ServiceControlHandlerResult::NoError
}

/// A running service.
#[derive(Debug)]
pub(crate) struct Service {
    /// `None` once it has stopped: the process may be ended from then on, and must not report
    /// anything else.
    status: Mutex<Option<ServiceStatusHandle>>,
    stop: Notify,
    figures: Notify,
    stop_time: Duration,
}

impl Service {
    /// Waits until the service manager asks for a stop.
    ///
    /// # Cancel safety
    ///
    /// A dropped future loses no stop.
    pub(crate) async fn stop(&self) {
        self.stop.notified().await;
    }

    /// Waits until the service manager asks for the figures.
    ///
    /// # Cancel safety
    ///
    /// A dropped future loses no request.
    pub(crate) async fn figures(&self) {
        self.figures.notified().await;
    }

    fn report(&self, state: ServiceState) {
        let wait_hint = match state {
            ServiceState::StopPending => self.stop_time,
            _ => Duration::ZERO,
        };
        if let Some(status) = &*self.status.lock() {
            send(status, state, 0, wait_hint);
        }
    }

    fn report_end(&self, code: u8) {
        if let Some(status) = self.status.lock().take() {
            send(&status, ServiceState::Stopped, code, Duration::ZERO);
        }
    }
}

fn send(status: &ServiceStatusHandle, state: ServiceState, code: u8, wait_hint: Duration) {
    // Preshutdown instead of shutdown: the system waits for it as long as the installation has
    // asked for, and only 5 s for a shutdown (`WaitToKillServiceTimeout`). While a stop is
    // pending, it refuses another one (*ControlService function*,
    // `ERROR_SERVICE_CANNOT_ACCEPT_CTRL`).
    let controls_accepted = match state {
        ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN,
        _ => ServiceControlAccept::empty(),
    };
    let exit_code = match code {
        0 => ServiceExitCode::NO_ERROR,
        code => ServiceExitCode::ServiceSpecific(code.into()),
    };
    let reported = status.set_service_status(ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code,
        checkpoint: 0,
        wait_hint,
        process_id: None,
    });
    if let Err(error) = reported {
        error!(
            error = chain(&error),
            ?state,
            "the service manager can't be told the state"
        );
    }
}
