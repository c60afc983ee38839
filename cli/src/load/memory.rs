//! The memory of another process.

use std::io;

/// The resident memory of a process, in bytes.
#[cfg(target_os = "linux")]
pub fn resident(process: u32) -> io::Result<u64> {
    // The cheaper counters in `stat` and `status` are inexact, proc(5).
    let maps = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let kibibytes = maps.lines().find_map(|line| {
        line.strip_prefix("Rss:")?
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    match kibibytes {
        Some(kibibytes) => Ok(kibibytes * 1024),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "it has none left")),
    }
}

/// The resident memory of a process, its working set, in bytes.
#[cfg(windows)]
pub fn resident(process: u32) -> io::Result<u64> {
    use winsafe::{HPROCESS, co, prelude::*};

    let error = |error: co::ERROR| io::Error::from_raw_os_error(error.raw() as i32);
    let access = co::PROCESS::QUERY_LIMITED_INFORMATION | co::PROCESS::VM_READ;
    let process = HPROCESS::OpenProcess(access, false, process).map_err(error)?;
    let counters = process.GetProcessMemoryInfo().map_err(error)?;
    Ok(counters.WorkingSetSize as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some_memory() {
        let memory = resident(std::process::id()).unwrap();
        assert!((100 << 10..100 << 30).contains(&memory), "{memory}");
    }
}
