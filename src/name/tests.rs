use super::*;

fn parse(name: &str) -> Result<PipeName, NameError> {
    name.parse()
}

#[test]
fn a_short_name_and_its_full_path_are_one_pipe() {
    let short = parse("mynamedpipe").unwrap();
    assert_eq!(short.short(), Some("mynamedpipe"));
    for full in [
        r"\\.\pipe\mynamedpipe",
        r"\\.\PIPE\mynamedpipe",
        "//./pipe/mynamedpipe",
        r"\\?\pipe\mynamedpipe",
        r"\\?\Pipe\mynamedpipe",
    ] {
        assert_eq!(parse(full).unwrap(), short, "{full}");
    }
}

#[test]
fn a_name_and_its_path_lead_to_one_pipe() {
    let name = parse("mynamedpipe").unwrap();
    let path = name.to_path();
    assert_eq!(PipeName::try_from(&path).unwrap().to_path(), path);
    assert_eq!(name.to_string(), "mynamedpipe");
}

#[test]
fn impossible_names_are_refused_and_say_why() {
    assert_eq!(parse(""), Err(NameError::Empty));
    assert_eq!(parse(r"\\.\pipe\"), Err(NameError::Empty));
    assert_eq!(parse(r"\\?\pipe\"), Err(NameError::Empty));
    for name in [
        "a\0b",
        "a\nb",
        r"\a",
        r"\\a",
        r"a\",
        r"a\\b",
        r"a\..\b",
        r"\\.\pipe\..\C:\x",
        r"\\.\pipe\a\.",
        r"\\.\pipe\\a",
        r"\\?\UNC\host\pipe\x",
        r"\\.\UNC\host\pipe\x",
    ] {
        let error = parse(name).unwrap_err();
        assert!(
            matches!(error, NameError::Character { .. }),
            "{name:?}: {error:?}"
        );
    }
    let error = parse(&"n".repeat(300)).unwrap_err();
    assert!(matches!(error, NameError::TooLong { .. }), "{error:?}");
}

#[test]
fn everything_that_holds_a_name_converts() {
    fn convert(name: impl TryInto<PipeName, Error: Into<NameError>>) -> PipeName {
        name.try_into().map_err(Into::into).unwrap()
    }
    let name = parse("mynamedpipe").unwrap();
    let text = String::from("mynamedpipe");
    let path = PathBuf::from("mynamedpipe");
    for converted in [
        convert(&name),
        convert(name.clone()),
        convert("mynamedpipe"),
        convert(&text),
        convert(text.clone()),
        convert(path.as_path()),
        convert(&path),
        convert(path.clone()),
        convert(path.as_os_str()),
        convert(path.clone().into_os_string()),
    ] {
        assert_eq!(converted, name);
    }
}

#[cfg(windows)]
#[test]
fn a_pipe_of_another_machine_is_a_name_but_a_remote_one() {
    let name = parse(r"\\host\pipe\x").unwrap();
    assert_eq!(name.address(), r"\\host\pipe\x");
    assert_eq!(name.short(), None);
    assert!(name.is_remote());
    let name = parse(r"\\host\pipe\LOCAL\x").unwrap();
    assert_eq!(name.address(), r"\\host\pipe\LOCAL\x");
    assert!(name.is_remote());
    assert!(!parse("x").unwrap().is_remote());
    assert!(parse("a/b").is_err());
}

#[test]
fn a_backslash_inside_a_name_is_legal_on_windows_alone() {
    for short in [r"LOCAL\name", r"ProtectedPrefix\Administrators\a.b"] {
        for prefix in ["", r"\\.\pipe\", r"\\?\pipe\"] {
            let name = parse(&format!("{prefix}{short}"));
            if cfg!(windows) {
                let name = name.unwrap();
                assert_eq!(name.short(), Some(short));
                assert_eq!(name.to_path(), Path::new(&format!("{LOCAL_PREFIX}{short}")));
                assert!(!name.is_remote());
            } else {
                let error = name.unwrap_err();
                let is_backslash = matches!(
                    error,
                    NameError::Character {
                        character: '\\',
                        ..
                    }
                );
                assert!(is_backslash, "{error:?}");
            }
        }
        assert_eq!(PipeName::system(short).is_ok(), cfg!(windows));
    }
}

#[cfg(windows)]
#[test]
fn a_name_can_not_lead_out_of_the_pipes() {
    for name in ["..", ".", r"..\x", r"\\host\pipe\..", r"\\..\pipe\x"] {
        let error = parse(name).unwrap_err();
        assert!(matches!(error, NameError::Character { .. }), "{error:?}");
    }
}

#[cfg(windows)]
#[test]
fn the_longest_address_has_256_units() {
    assert!(parse(&"n".repeat(256 - LOCAL_PREFIX.len())).is_ok());
    assert!(parse(&"n".repeat(257 - LOCAL_PREFIX.len())).is_err());
}

#[cfg(unix)]
#[test]
fn a_name_with_a_slash_is_a_path_and_stays_as_it_is() {
    for path in ["./x", "/run/x.sock", "a//b", "/srv/pipe-server/x"] {
        let name = parse(path).unwrap();
        assert_eq!(name.to_path().as_os_str(), path);
        assert_eq!(name.short(), None);
        assert_eq!(name.to_string(), path);
    }
    for name in ["/a\0b", "/a\nb", "./a\x1b[2Jb"] {
        let error = parse(name).unwrap_err();
        assert!(matches!(error, NameError::Character { .. }), "{error:?}");
    }
}

#[test]
fn a_system_name_is_a_short_one_that_depends_on_nobody() {
    for name in ["mynamedpipe", r"\\.\pipe\mynamedpipe"] {
        let name = PipeName::system(name).unwrap();
        #[cfg(unix)]
        assert_eq!(name.to_string(), "/run/pipe-server/mynamedpipe.pipe");
        #[cfg(windows)]
        assert_eq!(name, parse("mynamedpipe").unwrap());
    }
    assert_eq!(PipeName::system(""), Err(NameError::Empty));
    for name in ["/run/x", "../x", r"\\host\pipe\x", "a\nb"] {
        let error = PipeName::system(name).unwrap_err();
        assert!(matches!(error, NameError::Character { .. }), "{error:?}");
    }
    let error = PipeName::system(&"n".repeat(300)).unwrap_err();
    assert!(matches!(error, NameError::TooLong { .. }), "{error:?}");
}

#[cfg(unix)]
#[test]
fn a_path_need_not_be_unicode_but_a_short_name_has_to_be() {
    use std::os::unix::ffi::OsStrExt as _;

    let path = OsStr::from_bytes(b"/tmp/\xff");
    assert_eq!(PipeName::try_from(path).unwrap().to_path(), path);
    let error = PipeName::try_from(OsStr::from_bytes(b"/tmp/\n\xff")).unwrap_err();
    assert!(matches!(error, NameError::Character { .. }), "{error:?}");
    let error = PipeName::try_from(OsStr::from_bytes(b"\xff")).unwrap_err();
    assert!(matches!(error, NameError::NotUnicode { .. }), "{error:?}");
}
