//! Credentials in arguments, which do not belong where others can read them.

use std::ffi::OsString;

/// The first of `arguments` that contains a URL with a user, a password or a token: the name of its
/// option, or else nothing, but never the value.
pub fn option_with_credentials(arguments: &[OsString]) -> Option<String> {
    let mut option = "an argument".to_owned();
    for argument in arguments {
        let text = argument.to_string_lossy();
        if text.starts_with("--") {
            option = text.split('=').next().unwrap_or_default().to_owned();
        }
        if has_credentials(&text) {
            return Some(option);
        }
    }
    None
}

/// Whether there is a URL such as `nats://USER:PASSWORD@HOST` in `text`.
fn has_credentials(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| {
        let is_end = |c: char| c.is_whitespace() || "/\"'<>".contains(c);
        let authority = rest.split(is_end).next().unwrap_or_default();
        authority.contains('@')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_with_credentials_is_found_and_named() {
        let find = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            option_with_credentials(&arguments)
        };
        for (arguments, option) in [
            (
                &["--echo", "--forward", "nats://u:p@host/s"][..],
                "--forward",
            ),
            (&["--forward=tls://token@host:4222/s"], "--forward"),
            (&["--forward", "nats://u:p?#@host/s"], "--forward"),
            (&["--exec", "fetch 'https://u:p@host/'"], "--exec"),
            (&["--exec", "a http://one/ b http://t@two/"], "--exec"),
        ] {
            assert_eq!(find(arguments).as_deref(), Some(option), "{arguments:?}");
        }
        for arguments in [
            &["--forward", "nats://host/a@b"][..],
            &["--forward=nats://host:4222/s", "--allow-user", "a@b"],
            &["--exec", "fetch http://host/ me@host"],
            &["--reply", "u:p@host"],
            &[],
        ] {
            assert_eq!(find(arguments), None, "{arguments:?}");
        }
    }
}
