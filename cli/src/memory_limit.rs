//! The limit of a process's memory on Linux.

use std::{fs, path::Path};

use rustix::process::{Resource, getrlimit};

/// The mount point of the control groups (cgroups(7), version 2).
const CGROUPS: &str = "/sys/fs/cgroup";

/// Returns how much memory this process may have, in bytes: the smallest limit of its address space
/// (`RLIMIT_AS`), of its data (`RLIMIT_DATA`) and of the control groups that it is in. `None` if
/// there is no limit.
#[must_use]
pub fn get() -> Option<u64> {
    let own = [Resource::As, Resource::Data].map(|resource| getrlimit(resource).current);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let group = group.and_then(|group| smallest(&Path::new(CGROUPS).join(group)));
    own.into_iter().flatten().chain(group).min()
}

/// Returns the smallest limit of the control group in `directory` and of the groups above it.
fn smallest(directory: &Path) -> Option<u64> {
    let limit = |group: &Path| {
        let limit = fs::read_to_string(group.join("memory.max")).ok()?;
        // Without a limit it is "max".
        limit.trim().parse().ok()
    };
    directory.ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("system.slice/pipe.service");
        fs::create_dir_all(&group).unwrap();
        assert_eq!(smallest(&group), None);
        let set = |group: &Path, limit: &str| fs::write(group.join("memory.max"), limit).unwrap();
        set(&group, "max\n");
        assert_eq!(smallest(&group), None);
        set(group.parent().unwrap(), "5000\n");
        assert_eq!(smallest(&group), Some(5000));
        set(&group, "4096\n");
        assert_eq!(smallest(&group), Some(4096));
        assert_eq!(smallest(&group.join("gone")), Some(4096));
    }
}
