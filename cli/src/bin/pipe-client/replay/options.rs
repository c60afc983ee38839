//! The options of a replay.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;
use pipe_server_cli::values;

/// The heading is given to each option: `next_help_heading` would go on to those of the program.
const HEADING: &str = "Replay";

/// The options of `--replay`.
#[derive(Args, Debug)]
pub(crate) struct ReplayOptions {
    /// Send the messages of the clients in FILE again, and compare what the server sends with what
    /// was recorded; - is stdin
    ///
    /// FILE is what pipe-server --dump FILE --dump-format json has written. Each recorded
    /// connection is one of its own. Messages are sent in the recorded order, and none before
    /// the messages of the server that came before it. A message of the server that differs,
    /// is missing or is one too many is printed in the manner of a diff, and the exit code is
    /// 7. Nothing is sent if a message in FILE is cut off (--dump-bytes), lost or longer than
    /// --max-message-size.
    #[arg(long, help_heading = HEADING, value_name = "FILE", value_parser = values::path(), conflicts_with_all = [
        "messages", "file", "interactive", "ping", "repeat", "encoding", "terminator", "hex", "raw", "nul", "json",
    ])]
    pub(crate) replay: Option<PathBuf>,

    /// Speed of sending: max, or a factor of the recorded one, such as 1, 10 or 0.5
    ///
    /// With max, a message is sent as soon as the server has sent what came before it.
    #[arg(long, help_heading = HEADING, value_name = "SPEED", default_value = "1", requires = "replay")]
    pub(crate) replay_speed: ReplaySpeed,
}

/// A factor of the recorded speed; `None` is as fast as it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ReplaySpeed(Option<f64>);

impl ReplaySpeed {
    /// The time after the start at which a message is due that was recorded after `time`.
    pub(crate) fn due(self, time: Duration) -> Duration {
        match self.0 {
            None => Duration::ZERO,
            Some(factor) => {
                Duration::try_from_secs_f64(time.as_secs_f64() / factor).unwrap_or(Duration::MAX)
            }
        }
    }
}

impl FromStr for ReplaySpeed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "max" {
            return Ok(Self(None));
        }
        let factor = text.parse().ok();
        let factor = factor.filter(|factor: &f64| factor.is_finite() && *factor > 0.0);
        match factor {
            Some(factor) => Ok(Self(Some(factor))),
            None => Err("give max, or a factor such as 1, 10 or 0.5"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_factor_or_max() {
        let due = |text: &str, time| text.parse::<ReplaySpeed>().unwrap().due(time);
        let second = Duration::from_secs(1);
        assert_eq!(due("1", second), second);
        assert_eq!(due("0.5", second), 2 * second);
        assert_eq!(due("max", second), Duration::ZERO);
        assert_eq!(due("1e-300", second), Duration::MAX);
        for wrong in ["0", "-1", "nan", "inf", "", "fast"] {
            assert!(wrong.parse::<ReplaySpeed>().is_err(), "{wrong}");
        }
    }
}
