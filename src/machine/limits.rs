//! What this process may use of the machine: readers of /proc, /sys and cgroups (v1 and v2). In: a folder that stands for `/`, so that
//! tests read recorded samples. Out: counts and bytes; `None` where a file is missing or not understood. No sysinfo call here: it knows
//! neither affinity nor quotas.

use super::Cache;
use crate::units::Bytes;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The system's files below some root.
pub struct Files {
    root: PathBuf,
}

/// A core with less than this share of the fastest one's capacity is slow: prime and big cores of one processor lie within it, little ones do not.
const FAST: f64 = 0.7;

/// Whole cores within a quota of CPU time. Rounded down: a pool with more threads than quota is throttled all together, and its barriers wait
/// for the throttled one.
pub(super) fn threads_within(cores: usize, quota: Option<f64>) -> usize {
    quota.map_or(cores, |q| cores.min(q as usize)).max(1)
}

impl Files {
    /// Those of this system.
    pub fn system() -> Files {
        Files { root: "/".into() }
    }

    /// Those recorded below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Files {
        Files { root: root.into() }
    }

    pub(super) fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref();
        std::fs::read_to_string(self.root.join(path.strip_prefix("/").unwrap_or(path))).ok()
    }

    /// The first value of a key in /proc/cpuinfo.
    pub(super) fn cpuinfo(&self, key: &str) -> Option<String> {
        self.read("proc/cpuinfo")?.lines().find_map(|l| {
            let (k, v) = l.split_once(':')?;
            (k.trim() == key).then(|| v.trim().to_string())
        })
    }

    /// A `key:  123 kB` line of /proc/self/status or /proc/meminfo, in bytes.
    fn kib(text: &str, key: &str) -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// A size in /proc/self/status.
    pub fn status_bytes(&self, key: &str) -> Option<u64> {
        Files::kib(&self.read("proc/self/status")?, key)
    }

    /// The kernel's estimate of memory that can be had without swapping.
    pub fn available_memory(&self) -> Option<u64> {
        Files::kib(&self.read("proc/meminfo")?, "MemAvailable")
    }

    /// Logical CPUs in the affinity mask (cpusets are part of it); empty if unknown.
    pub fn allowed_cpus(&self) -> Vec<usize> {
        let status = self.read("proc/self/status").unwrap_or_default();
        let list =
            status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        parse_list(list)
    }

    /// Physical cores behind the affinity mask: distinct groups of sibling threads.
    pub fn physical_cores(&self) -> Option<usize> {
        self.cores_of(&self.allowed_cpus())
    }

    /// Of these, the fast ones, where the system tells performance cores from efficiency cores: work is cut evenly, so that one slow core
    /// makes all others wait. All of them where it does not, or where only slow ones are allowed.
    pub fn fast_cores(&self) -> Option<usize> {
        let cpus = self.allowed_cpus();
        let slow = self
            .read("sys/devices/cpu_atom/cpus")
            .map(|list| parse_list(&list))
            .unwrap_or_default();
        let capacity = |cpu: usize| {
            self.read(format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"))?
                .trim()
                .parse::<f64>()
                .ok()
        };
        let most = cpus.iter().filter_map(|&cpu| capacity(cpu)).fold(0.0, f64::max);
        let is_fast =
            |cpu: &usize| !slow.contains(cpu) && capacity(*cpu).is_none_or(|c| c >= most * FAST);
        let fast: Vec<usize> = cpus.iter().copied().filter(is_fast).collect();
        self.cores_of(if fast.is_empty() { &cpus } else { &fast })
    }

    fn cores_of(&self, cpus: &[usize]) -> Option<usize> {
        if cpus.is_empty() {
            return None;
        }
        let cores: BTreeSet<Vec<usize>> = cpus
            .iter()
            .map(|cpu| {
                let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
                let read = |name: &str| {
                    self.read(format!("{topology}/{name}"))
                        .map(|t| parse_list(&t))
                        .filter(|l| !l.is_empty())
                };
                read("core_cpus_list")
                    .or_else(|| read("thread_siblings_list"))
                    .unwrap_or_else(|| vec![*cpu])
            })
            .collect();
        Some(cores.len())
    }

    /// CPUs' worth of time granted by the cgroup and all its parents, if limited.
    pub fn cpu_quota(&self) -> Option<f64> {
        let v2 = self.cgroup_folders("").into_iter().filter_map(|folder| {
            let text = self.read(folder.join("cpu.max"))?;
            let (quota, period) = text.trim().split_once(' ')?;
            Some((quota.parse::<f64>().ok()?, period.trim().parse::<f64>().ok()?))
        });
        let v1 = self.cgroup_folders("cpu").into_iter().filter_map(|folder| {
            let number = |name: &str| self.read(folder.join(name))?.trim().parse::<f64>().ok();
            Some((number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?))
        });
        v2.chain(v1)
            .filter(|(q, p)| *q > 0.0 && *p > 0.0)
            .map(|(q, p)| q / p)
            .min_by(f64::total_cmp)
    }

    /// Bytes left below the memory limits of the cgroup and its parents. File pages that the kernel can drop do not count as used.
    pub fn cgroup_memory_left(&self) -> Option<u64> {
        let level = |folder: PathBuf, max: &str, used: &str, droppable: &str| {
            let number = |name: &str| self.read(folder.join(name))?.trim().parse::<u64>().ok();
            // v1 writes "no limit" as the largest multiple of a page in an i64.
            let limit = number(max).filter(|m| *m < 1 << 60)?;
            let stat = self.read(folder.join("memory.stat")).unwrap_or_default();
            let droppable: u64 = stat
                .lines()
                .find_map(|l| l.strip_prefix(droppable)?.strip_prefix(' ')?.trim().parse().ok())
                .unwrap_or(0);
            Some(limit.saturating_sub(number(used).unwrap_or(0).saturating_sub(droppable)))
        };
        let v2 = self
            .cgroup_folders("")
            .into_iter()
            .filter_map(|f| level(f, "memory.max", "memory.current", "inactive_file"));
        let v1 = self.cgroup_folders("memory").into_iter().filter_map(|f| {
            level(f, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        });
        v2.chain(v1).min()
    }

    /// Bytes left below the resource limits on address space and data (`ulimit -v`, `ulimit -d`).
    pub fn resource_limit_left(&self) -> Option<u64> {
        let limits = self.read("proc/self/limits")?;
        let soft = |name: &str| {
            limits
                .lines()
                .find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
        };
        let left = |name: &str, used: &str| {
            Some(soft(name)?.saturating_sub(self.status_bytes(used).unwrap_or(0)))
        };
        [left("Max address space", "VmSize"), left("Max data size", "VmData")]
            .into_iter()
            .flatten()
            .min()
    }

    /// Largest file that this process may write (`ulimit -f`), if limited.
    pub fn file_size_limit(&self) -> Option<u64> {
        let limits = self.read("proc/self/limits")?;
        limits
            .lines()
            .find_map(|l| l.strip_prefix("Max file size")?.split_whitespace().next()?.parse().ok())
    }

    /// This process's folder and its parents up to the mount, in the hierarchy of a v1 controller, or of v2 for "".
    fn cgroup_folders(&self, controller: &str) -> Vec<PathBuf> {
        self.try_cgroup_folders(controller).unwrap_or_default()
    }

    fn try_cgroup_folders(&self, controller: &str) -> Option<Vec<PathBuf>> {
        // Lines are `id:controllers:path`; v2's has no controllers.
        let own = self.read("proc/self/cgroup")?;
        let path = own.lines().find_map(|l| {
            let mut parts = l.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            names.split(',').any(|n| n == controller).then_some(path)
        })?;
        // Lines are `id parent major:minor root mountpoint options … - type source super-options`.
        let mounts = self.read("proc/self/mountinfo")?;
        let (root, mount) = mounts.lines().find_map(|l| {
            let (left, right) = l.split_once(" - ")?;
            let (left, right): (Vec<_>, Vec<_>) =
                (left.split(' ').collect(), right.split(' ').collect());
            let matches = match controller {
                "" => *right.first()? == "cgroup2",
                c => *right.first()? == "cgroup" && right.get(2)?.split(',').any(|o| o == c),
            };
            matches.then_some((*left.get(3)?, *left.get(4)?))
        })?;
        // In a container without its own cgroup namespace the mount shows only the part below `root`.
        let relative = Path::new(path).strip_prefix(root).unwrap_or(Path::new("")).to_path_buf();
        Some(relative.ancestors().map(|a| Path::new(mount).join(a)).collect())
    }

    /// Data and unified caches of the first allowed CPU.
    pub fn caches(&self) -> Vec<Cache> {
        let cpu = self.allowed_cpus().first().copied().unwrap_or(0);
        let mut found: Vec<Cache> = (0..8)
            .map_while(|i| {
                let folder = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{i}");
                let read = |name: &str| {
                    self.read(format!("{folder}/{name}")).map(|t| t.trim().to_string())
                };
                let kind = read("type")?;
                let cache = (|| {
                    let size: Bytes = read("size")?.parse().ok()?;
                    Some(Cache {
                        level: read("level")?.parse().ok()?,
                        size,
                        shared_by: parse_list(&read("shared_cpu_list")?).len().max(1),
                    })
                })();
                Some(cache.filter(|_| kind != "Instruction"))
            })
            .flatten()
            .collect();
        found.sort_by_key(|c| c.level);
        found
    }

    /// The chosen word of `always [madvise] never`.
    pub fn huge_pages(&self) -> Option<String> {
        let text = self.read("sys/kernel/mm/transparent_hugepage/enabled")?;
        Some(text.split_once('[')?.1.split_once(']')?.0.to_string())
    }

    /// The one-minute load average.
    pub fn load_average(&self) -> Option<f64> {
        self.read("proc/loadavg")?.split(' ').next()?.parse().ok()
    }
}

/// `0-3,8,10-11` as numbers; what is not understood is left out. No list of CPUs is longer than the bound.
fn parse_list(text: &str) -> Vec<usize> {
    const MOST: usize = 1 << 16;
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) =
                (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (last < MOST).then_some(first..=last)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn recorded(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let files = Files::at(root.path());
        (root, files)
    }

    const V2_MOUNT: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn efficiency_cores_are_left_out_where_the_system_tells_them_apart() {
        let machine = |allowed: &str, files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            let write = |name: &str, text: &str| {
                let path = folder.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            write("proc/self/status", &format!("Cpus_allowed_list:\t{allowed}\n"));
            files.iter().for_each(|(name, text)| write(name, text));
            let files = Files::at(folder.path());
            (files.physical_cores(), files.fast_cores())
        };
        // Intel: two performance cores of two threads each, four efficiency cores.
        let siblings =
            |cpu: usize| format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list");
        let names: Vec<String> = (0..8).map(siblings).collect();
        let mut hybrid =
            vec![("sys/devices/cpu_core/cpus", "0-3\n"), ("sys/devices/cpu_atom/cpus", "4-7\n")];
        let lists = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"];
        hybrid.extend(names.iter().zip(lists).map(|(name, list)| (name.as_str(), list)));
        assert_eq!(machine("0-7", &hybrid), (Some(6), Some(2)));
        assert_eq!(machine("4-6", &hybrid), (Some(3), Some(3)), "only slow ones may be used");
        // Arm: one prime, two big, two little cores.
        let capacity = |cpu: usize| format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity");
        let names: Vec<String> = (0..5).map(capacity).collect();
        let arm: Vec<(&str, &str)> = names
            .iter()
            .map(String::as_str)
            .zip(["1024\n", "870\n", "870\n", "350\n", "350\n"])
            .collect();
        assert_eq!(machine("0-4", &arm), (Some(5), Some(3)));
        assert_eq!(machine("3-4", &arm), (Some(2), Some(2)));
        // All alike, or nothing told.
        assert_eq!(machine("0-3", &[]), (Some(4), Some(4)));
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list("5"), [5]);
        assert_eq!(parse_list(""), [] as [usize; 0]);
        assert_eq!(parse_list("x,1-y,99999999999,3"), [3]);
    }

    #[test]
    fn cores_are_counted_once_however_many_threads_of_them_are_allowed() {
        let topology = |cpu: usize, siblings: &'static str| {
            (format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"), siblings)
        };
        let files = [
            topology(0, "0,4\n"),
            topology(1, "1,5\n"),
            topology(4, "0,4\n"),
            topology(5, "1,5\n"),
        ];
        let mut list: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), *t)).collect();
        list.push((
            "proc/self/status",
            "Name:\tx\nCpus_allowed:\t33\nCpus_allowed_list:\t0-1,4\nVmHWM:\t  1612 kB\n",
        ));
        let (_root, files) = recorded(&list);
        assert_eq!(files.physical_cores(), Some(2));
        assert_eq!(files.allowed_cpus(), [0, 1, 4]);
        assert_eq!(files.status_bytes("VmHWM"), Some(1612 * 1024));
    }

    #[test]
    fn without_topology_every_allowed_cpu_is_a_core() {
        let (_root, files) = recorded(&[("proc/self/status", "Cpus_allowed_list:\t2-4\n")]);
        assert_eq!(files.physical_cores(), Some(3));
        let (_root, files) = recorded(&[]);
        assert_eq!(files.physical_cores(), None);
    }

    #[test]
    fn quota_of_a_v2_container_is_the_least_of_it_and_its_parents() {
        let (_root, files) = recorded(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
        ]);
        assert_eq!(files.cpu_quota(), Some(2.5));
        assert_eq!(threads_within(8, files.cpu_quota()), 2);
        assert_eq!(threads_within(1, files.cpu_quota()), 1);
        assert_eq!(threads_within(8, Some(0.5)), 1);
        assert_eq!(threads_within(8, None), 8);
    }

    #[test]
    fn quota_of_a_v1_container_that_sees_only_its_own_part() {
        let (_root, files) = recorded(&[
            (
                "proc/self/cgroup",
                "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            ),
            (
                "proc/self/mountinfo",
                "31 30 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                 32 30 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 5\ntotal_inactive_file 400000000\n"),
        ]);
        assert_eq!(files.cpu_quota(), Some(1.5));
        assert_eq!(files.cgroup_memory_left(), Some(1073741824 - 100000000));
    }

    #[test]
    fn no_limit_is_none() {
        let (_root, files) = recorded(&[
            ("proc/self/cgroup", "4:memory:/x\n1:cpu:/\n0::/\n"),
            (
                "proc/self/mountinfo",
                "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!((files.cpu_quota(), files.cgroup_memory_left()), (None, None));
    }

    #[test]
    fn memory_of_a_v2_container_counts_what_is_used_already() {
        let (_root, files) = recorded(&[
            ("proc/self/cgroup", "0::/box\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/box/memory.max", "1000000\n"),
            ("sys/fs/cgroup/box/memory.current", "700000\n"),
            ("sys/fs/cgroup/box/memory.stat", "anon 1\ninactive_file 100000\nactive_file 9\n"),
        ]);
        assert_eq!(files.cgroup_memory_left(), Some(400_000));
    }

    #[test]
    fn resource_limits() {
        let status = ("proc/self/status", "VmSize:\t  1000 kB\nVmData:\t   10 kB\n");
        let (_root, files) = recorded(&[
            status,
            (
                "proc/self/limits",
                "Limit  Soft Limit  Hard Limit  Units\n\
                 Max data size   unlimited  unlimited  bytes\n\
                 Max address space  2048000  unlimited  bytes\n",
            ),
        ]);
        assert_eq!(files.resource_limit_left(), Some(2048000 - 1024000));
        let (_root, files) = recorded(&[
            status,
            ("proc/self/limits", "Max address space   unlimited   unlimited  bytes\n"),
        ]);
        assert_eq!(files.resource_limit_left(), None);
    }

    #[test]
    fn caches_of_the_first_allowed_cpu() {
        let index = "sys/devices/system/cpu/cpu1/cache/index";
        let texts: Vec<(String, &str)> = [
            ("0", "Data", "1", "32K", "1"),
            ("1", "Instruction", "1", "64K", "1"),
            ("2", "Unified", "3", "8192K", "0-3"),
        ]
        .into_iter()
        .flat_map(|(i, kind, level, size, shared)| {
            [("type", kind), ("level", level), ("size", size), ("shared_cpu_list", shared)]
                .map(|(n, t)| (format!("{index}{i}/{n}"), t))
        })
        .collect();
        let mut list: Vec<(&str, &str)> = texts.iter().map(|(p, t)| (p.as_str(), *t)).collect();
        list.push(("proc/self/status", "Cpus_allowed_list:\t1\n"));
        let (_root, files) = recorded(&list);
        let shown: Vec<String> = files.caches().iter().map(Cache::to_string).collect();
        assert_eq!(shown, ["L1 32.0 KiB", "L3 8.0 MiB shared by 4"]);
    }

    #[test]
    fn words_and_numbers() {
        let (_root, files) = recorded(&[
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("proc/loadavg", "0.84 1.25 1.77 2/101 21703\n"),
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: fpu hypervisor\n",
            ),
            ("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:    50 kB\n"),
        ]);
        assert_eq!(files.huge_pages().as_deref(), Some("madvise"));
        assert_eq!(files.load_average(), Some(0.84));
        assert_eq!(files.cpuinfo("model name").as_deref(), Some("Some CPU: fast"));
        assert_eq!(files.available_memory(), Some(50 * 1024));
    }
}
