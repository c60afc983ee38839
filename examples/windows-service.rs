//! A Windows service of one's own, which answers every request with the request itself.
//!
//! Run `cargo build --example windows-service`, copy the program to `C:\my-echo`, and as
//! administrator:
//!
//! ```text
//! sc.exe create my-echo binPath= C:\my-echo\windows-service.exe obj= "NT SERVICE\my-echo"
//! sc.exe start my-echo
//! sc.exe showsid my-echo
//! pipe-client --pipe-name my-echo --trust THAT-SID hello
//! sc.exe stop my-echo
//! sc.exe delete my-echo
//! ```

use std::future::Future;

use pipe_server::{Bytes, PipeListener, Summary, serve};

#[cfg(windows)]
fn main() -> windows_service::Result<()> {
    service::run()
}

#[cfg(not(windows))]
fn main() {
    eprintln!("services of this kind exist only on Windows");
}

/// What does not depend on the service manager, and is tested without it.
#[cfg_attr(not(windows), allow(dead_code, reason = "a service calls it"))]
async fn answer(
    listener: PipeListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Summary {
    serve(listener, |request: Bytes| async move { request })
        .with_graceful_shutdown(stop)
        .await
}

#[cfg(windows)]
mod service {
    use std::{ffi::OsString, io, time::Duration};

    use pipe_server::{Access, ListenerOptions};
    use tokio::{runtime::Runtime, sync::Notify};
    use windows_service::{
        define_windows_service,
        service::{
            ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus,
            ServiceType,
        },
        service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle},
        service_dispatcher,
    };

    /// The service manager wants it to stop.
    static STOP: Notify = Notify::const_new();

    define_windows_service!(entry, service_main);

    /// Returns when the service has stopped. Fails at once in a process that the service manager
    /// has not started.
    pub(crate) fn run() -> windows_service::Result<()> {
        // The name is ignored in a process of one service.
        service_dispatcher::start("", entry)
    }

    /// Called on a thread of its own, with the name of the service as the first argument.
    fn service_main(arguments: Vec<OsString>) {
        let name = arguments.into_iter().next().unwrap_or_default();
        let Ok(status) = service_control_handler::register(name, control) else {
            return;
        };
        report(status, ServiceState::StartPending, 0);
        let ended = Runtime::new().and_then(|runtime| runtime.block_on(serve(status)));
        let code = match ended {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(1),
        };
        report(status, ServiceState::Stopped, code as u32);
    }

    /// Must return quickly. A function and not a closure: `windows-service` frees what a closure
    /// captured after the first stop.
    fn control(control: ServiceControl) -> ServiceControlHandlerResult {
        match control {
            ServiceControl::Interrogate => {}
            ServiceControl::Stop => STOP.notify_one(),
            _ => return ServiceControlHandlerResult::NotImplemented,
        }
        ServiceControlHandlerResult::NoError
    }

    async fn serve(status: ServiceStatusHandle) -> io::Result<()> {
        // By default only the account of the service may connect.
        let options = ListenerOptions::new().access(Access::Everyone);
        let listener = options.bind("my-echo")?;
        // Whoever waits for the service can connect from here on.
        report(status, ServiceState::Running, 0);
        super::answer(listener, async move {
            STOP.notified().await;
            report(status, ServiceState::StopPending, 0);
        })
        .await;
        Ok(())
    }

    fn report(status: ServiceStatusHandle, state: ServiceState, code: u32) {
        let controls_accepted = match state {
            ServiceState::Running => ServiceControlAccept::STOP,
            _ => ServiceControlAccept::empty(),
        };
        // Nobody is left to be told about a failure.
        _ = status.set_service_status(ServiceStatus {
            service_type: ServiceType::OWN_PROCESS,
            current_state: state,
            controls_accepted,
            exit_code: ServiceExitCode::Win32(code),
            checkpoint: 0,
            // Longer than the drain timeout.
            wait_hint: Duration::from_secs(15),
            process_id: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use pipe_server::Client;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_answers_until_it_is_stopped() {
        let name = format!("windows-service-example-{}", std::process::id());
        let listener = PipeListener::bind(&name).unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(answer(listener, async { _ = stopped.await }));
        let mut client = Client::connect(&name).await.unwrap();
        assert_eq!(client.call("hello").await.unwrap(), "hello");
        stop.send(()).unwrap();
        assert_eq!(server.await.unwrap().stats.replies, 1);
    }
}
