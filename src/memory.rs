//! How much memory this process could still get: what the system has, and what its control group allows.
//!
//! In a container `/proc/meminfo` tells of the whole machine. Whoever believes it is killed.

use std::path::{Path, PathBuf};

/// Bytes that can be had now; a modest guess where the system does not tell.
pub fn available() -> u64 {
    available_in(Path::new("/"))
}

fn available_in(root: &Path) -> u64 {
    const GUESS: u64 = 4 << 30;
    let system = from_meminfo(root).unwrap_or(GUESS);
    groups(root).iter().filter_map(|group| left_in(group)).fold(system, u64::min)
}

fn from_meminfo(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The folders of the control groups that this process is in, version 2 (`0::/path`) and 1
/// (`5:memory:/path`), each with all above it, since their limits hold as well. In a container the path may
/// be that of the host, so the top is always among them.
fn groups(root: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut folders = vec![root.join("sys/fs/cgroup"), root.join("sys/fs/cgroup/memory")];
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let top = match controllers {
            "" => root.join("sys/fs/cgroup"),
            _ if controllers.split(',').any(|it| it == "memory") => root.join("sys/fs/cgroup/memory"),
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        let below = path.ancestors().filter(|it| !it.as_os_str().is_empty());
        folders.extend(below.map(|it| top.join(it)));
    }
    folders
}

/// What a group's limit leaves; none if it has no limit.
fn left_in(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = match read("memory.max") {
        Some(limit) => (limit, read("memory.current")?),
        None => (read("memory.limit_in_bytes")?, read("memory.usage_in_bytes")?),
    };
    // What files are cached with is counted as used, and given back when it is needed.
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let inactive =
        stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(inactive.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_counts() {
        let meminfo = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n");
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let v1 = ("proc/self/cgroup", "7:cpu,cpuacct:/x\n5:memory:/a\n");
        // files, bytes
        let rows: &[(&[(&str, &str)], u64)] = &[
            (&[meminfo], 8000 << 10),
            (&[], 4 << 30),
            (&[("proc/meminfo", "MemAvailable: many")], 4 << 30),
            (
                &[
                    meminfo,
                    v2,
                    ("sys/fs/cgroup/a/memory.max", "max"),
                    ("sys/fs/cgroup/a/memory.current", "5"),
                ],
                8000 << 10,
            ),
            (
                &[
                    meminfo,
                    v2,
                    ("sys/fs/cgroup/a/memory.max", "1000"),
                    ("sys/fs/cgroup/a/memory.current", "300"),
                ],
                700,
            ),
            (
                &[
                    meminfo,
                    v2,
                    ("sys/fs/cgroup/memory.max", "900"),
                    ("sys/fs/cgroup/memory.current", "500"),
                    ("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 100\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "1000"),
                    ("sys/fs/cgroup/a/b/memory.current", "300"),
                ],
                500,
            ),
            (&[meminfo, v2, ("sys/fs/cgroup/memory.max", "5"), ("sys/fs/cgroup/memory.current", "9")], 0),
            (
                &[
                    meminfo,
                    v1,
                    ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000"),
                    ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1999"),
                ],
                1,
            ),
        ];
        for (files, expected) in rows {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in *files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            assert_eq!(available_in(root.path()), *expected, "{files:?}");
        }
        assert!(available() > 0);
    }
}
