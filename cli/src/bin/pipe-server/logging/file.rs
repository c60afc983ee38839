//! The file of a log or dump, which is begun anew when it is full.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use pipe_server_cli::mutex::Mutex;
use tracing::warn;

use super::place::{self, Content};

/// A file that is appended to. Before a line would make it longer than its limit, it is renamed to
/// FILE.1, which replaces the one before, and begun anew. Lines are never split. What another user
/// may have put in its place is not written to (`place.rs`).
///
/// Other processes may write to it too, or empty it, as logrotate's copytruncate does: its size is
/// asked before each write. If two processes find it full at the same moment, they may rename it
/// twice, and the older lines are lost.
///
/// Not `file-rotate`, which cuts lines at a limit of bytes or exceeds it, and depends on a calendar
/// and a compressor.
#[derive(Clone, Debug)]
pub(crate) struct LogFile(Arc<Mutex<RotatedFile>>);

#[derive(Debug)]
struct RotatedFile {
    path: PathBuf,
    content: Content,
    file: File,
    limit: Option<u64>,
    /// The size at which to begin anew: the limit, or more after a failure, so as not to try again
    /// for each line.
    full: u64,
}

impl LogFile {
    /// Opens the file, and creates it if it does not exist.
    pub(crate) fn open(path: &Path, content: Content, limit: Option<u64>) -> io::Result<Self> {
        let rotated = RotatedFile {
            file: place::open(path, content)?,
            content,
            // A link stays, and what it leads to is renamed.
            path: fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
            limit,
            full: limit.unwrap_or(u64::MAX),
        };
        Ok(Self(Arc::new(Mutex::new(rotated))))
    }
}

impl Write for LogFile {
    /// Writes whole lines, as many as fit, but one at least.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.lock().write(lines)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RotatedFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let first = lines.iter().position(|&byte| byte == b'\n');
        let first = first.map_or(lines.len(), |newline| newline + 1);
        let mut size = self.file.metadata()?.len();
        if let Some(limit) = self.limit {
            if !fits(first, size, self.full) {
                let was_full = self.full;
                match self.begin_anew(first, limit) {
                    Ok(()) => self.full = limit,
                    Err(error) => {
                        self.full = size.saturating_add(limit / 8);
                        if was_full == limit {
                            let path = self.path.display();
                            let option = self.content.size_option();
                            warn!(%path, %error, "the file exceeds {option}, because a new one can't be begun");
                        }
                    }
                }
                size = self.file.metadata()?.len();
            }
        }
        let room = usize::try_from(self.full.saturating_sub(size)).unwrap_or(usize::MAX);
        let fitting = &lines[..room.min(lines.len())];
        let last = fitting.iter().rposition(|&byte| byte == b'\n');
        let end = last.map_or(first, |newline| newline + 1);
        self.file.write_all(&lines[..end])?;
        Ok(end)
    }

    /// Begins a new file for a line that does not fit into this one, unless another process has
    /// done so.
    fn begin_anew(&mut self, line: usize, limit: u64) -> io::Result<()> {
        if place::length(&self.path)?.is_some_and(|length| !fits(line, length, limit)) {
            let mut old = OsString::from(&self.path);
            old.push(".1");
            fs::rename(&self.path, old)?;
        }
        self.file = place::open_next(&self.path, &self.file, self.content)?;
        Ok(())
    }
}

/// Whether there is room for a line, as there always is in an empty file.
fn fits(line: usize, size: u64, limit: u64) -> bool {
    size == 0 || size.saturating_add(line as u64) <= limit
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    struct Test {
        directory: TempDir,
    }

    impl Test {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            Self { directory }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn open(&self, limit: impl Into<Option<u64>>) -> LogFile {
            LogFile::open(&self.path("log"), Content::Log, limit.into()).unwrap()
        }

        /// What is in the file and in the one before.
        fn logs(&self) -> [String; 2] {
            ["log", "log.1"].map(|name| fs::read_to_string(self.path(name)).unwrap_or_default())
        }
    }

    #[test]
    fn a_line_that_does_not_fit_begins_a_new_file() {
        let test = Test::new();
        let mut log = test.open(10);
        log.write_all(b"aaaa\n").unwrap();
        log.write_all(b"bbbb\n").unwrap();
        assert_eq!(test.logs(), ["aaaa\nbbbb\n", ""]);
        log.write_all(b"c\n").unwrap();
        assert_eq!(test.logs(), ["c\n", "aaaa\nbbbb\n"]);
        log.write_all(b"ddddddd\n").unwrap();
        log.write_all(b"e\n").unwrap();
        assert_eq!(test.logs(), ["e\n", "c\nddddddd\n"]);
    }

    #[test]
    fn many_lines_at_once_are_split_between_lines_alone() {
        let test = Test::new();
        let mut log = test.open(10);
        log.write_all(b"aaaa\nbbbb\ncccc\nddd\nee\nf\n").unwrap();
        assert_eq!(test.logs(), ["ee\nf\n", "cccc\nddd\n"]);
    }

    #[test]
    fn a_line_longer_than_the_limit_is_whole_in_a_file_of_its_own() {
        let test = Test::new();
        let mut log = test.open(10);
        log.write_all(b"a long line without room\nb\n").unwrap();
        assert_eq!(test.logs(), ["b\n", "a long line without room\n"]);
    }

    #[test]
    fn what_was_there_before_counts() {
        let test = Test::new();
        fs::write(test.path("log"), "from before\n").unwrap();
        let mut log = test.open(16);
        log.write_all(b"aaa\n").unwrap();
        assert_eq!(test.logs(), ["from before\naaa\n", ""]);
        log.write_all(b"b\n").unwrap();
        assert_eq!(test.logs(), ["b\n", "from before\naaa\n"]);
    }

    #[test]
    fn without_a_limit_there_is_one_file() {
        let test = Test::new();
        let mut log = test.open(None);
        log.write_all(&b"line\n".repeat(1000)).unwrap();
        assert_eq!(test.logs(), [&"line\n".repeat(1000), ""]);
    }

    #[test]
    fn a_file_that_can_not_be_renamed_is_written_to_until_it_can_be() {
        let test = Test::new();
        let mut log = test.open(16);
        fs::create_dir(test.path("log.1")).unwrap();
        log.write_all(b"aaaaaaaaaaaa\nbbb\nccc\nddd\n").unwrap();
        assert_eq!(test.logs(), ["aaaaaaaaaaaa\nbbb\nccc\nddd\n", ""]);
        fs::remove_dir(test.path("log.1")).unwrap();
        log.write_all(b"eee\n").unwrap();
        assert_eq!(test.logs(), ["eee\n", "aaaaaaaaaaaa\nbbb\nccc\nddd\n"]);
        log.write_all(b"ffffffffffff\n").unwrap();
        assert_eq!(test.logs()[0], "ffffffffffff\n");
    }

    #[test]
    fn a_process_goes_on_in_the_file_that_another_one_has_begun() {
        let test = Test::new();
        let (mut one, mut other) = (test.open(10), test.open(10));
        one.write_all(b"aaaa\n").unwrap();
        other.write_all(b"bbbb\n").unwrap();
        one.write_all(b"c\n").unwrap();
        other.write_all(b"d\n").unwrap();
        assert_eq!(test.logs(), ["c\nd\n", "aaaa\nbbbb\n"]);
    }

    #[test]
    fn a_file_that_was_emptied_or_taken_away_has_room_again() {
        let test = Test::new();
        let mut log = test.open(10);
        log.write_all(b"aaaa\nbbbb\n").unwrap();
        fs::write(test.path("log"), "").unwrap();
        log.write_all(b"cccc\ndddd\n").unwrap();
        assert_eq!(test.logs(), ["cccc\ndddd\n", ""]);
        fs::rename(test.path("log"), test.path("elsewhere")).unwrap();
        log.write_all(b"e\n").unwrap();
        assert_eq!(test.logs(), ["e\n", ""]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_leads_to_the_new_file() {
        let test = Test::new();
        let link = test.path("link");
        std::os::unix::fs::symlink(test.path("log"), &link).unwrap();
        let mut log = LogFile::open(&link, Content::Log, Some(10)).unwrap();
        log.write_all(b"aaaa\nbbbb\nc\n").unwrap();
        assert_eq!(test.logs(), ["c\n", "aaaa\nbbbb\n"]);
        assert_eq!(fs::read_to_string(&link).unwrap(), "c\n");
    }

    /// Writes beyond the limit while something else than a file is in the log's place.
    #[cfg(unix)]
    fn write_past(test: &Test, put: impl FnOnce(&Path)) {
        let mut log = test.open(10);
        log.write_all(b"aaaa\nbbbb\n").unwrap();
        fs::remove_file(test.path("log")).unwrap();
        put(&test.path("log"));
        log.write_all(b"c\nd\n").unwrap();
        // It goes on where it can.
        fs::remove_file(test.path("log")).unwrap();
        log.write_all(b"eeee\nffff\n").unwrap();
        assert!(test.logs()[0].ends_with("ffff\n"), "{:?}", test.logs());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_log_is_not_followed() {
        let test = Test::new();
        let secret = test.path("secret");
        fs::write(&secret, "secret\n").unwrap();
        write_past(&test, |place| {
            std::os::unix::fs::symlink(&secret, place).unwrap();
        });
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
        // A link to nothing would be created through.
        let nothing = test.path("nothing");
        write_past(&test, |place| {
            std::os::unix::fs::symlink(&nothing, place).unwrap();
        });
        assert!(!nothing.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_old_log_is_replaced_and_not_followed() {
        let test = Test::new();
        let secret = test.path("secret");
        fs::write(&secret, "secret\n").unwrap();
        std::os::unix::fs::symlink(&secret, test.path("log.1")).unwrap();
        test.open(10).write_all(b"aaaa\nbbbb\nc\n").unwrap();
        assert_eq!(test.logs(), ["c\n", "aaaa\nbbbb\n"]);
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_in_the_place_of_the_log_blocks_nothing() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let test = Test::new();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            write_past(&test, |place| {
                mknodat(CWD, place, FileType::Fifo, Mode::RWXU, 0).unwrap();
            });
            done.send(()).unwrap();
        });
        let limit = std::time::Duration::from_secs(60);
        is_done.recv_timeout(limit).expect("it hangs, or failed");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_does_not_become_the_next_dump() {
        use std::os::unix::fs::PermissionsExt as _;

        let test = Test::new();
        let mut dump = LogFile::open(&test.path("log"), Content::Dump, Some(10)).unwrap();
        dump.write_all(b"aaaa\nbbbb\n").unwrap();
        fs::rename(test.path("log"), test.path("elsewhere")).unwrap();
        fs::write(test.path("log"), "").unwrap();
        fs::set_permissions(test.path("log"), fs::Permissions::from_mode(0o644)).unwrap();
        dump.write_all(b"c\n").unwrap();
        assert_eq!(test.logs(), ["", ""]);
        let before = fs::read_to_string(test.path("elsewhere")).unwrap();
        assert_eq!(before, "aaaa\nbbbb\nc\n");
    }

    #[cfg(unix)]
    #[test]
    fn who_may_not_read_the_log_may_not_read_the_next_one() {
        use std::os::unix::fs::PermissionsExt as _;

        let test = Test::new();
        let mut log = test.open(10);
        fs::set_permissions(test.path("log"), fs::Permissions::from_mode(0o600)).unwrap();
        log.write_all(b"aaaa\nbbbb\nc\n").unwrap();
        let file = fs::metadata(test.path("log")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }
}
