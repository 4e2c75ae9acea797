//! Facts about this machine: CPU and its features, caches, usable cores, memory, load. In: the operating system's files (sysinfo where
//! it knows, small readers of /proc, /sys and cgroups where it does not). Out: plain data that every report and result carries.
//! It measures no speed (see `roofline`), sets nothing, and names no host.

mod features;
mod limits;
mod load;

pub use features::Feature;
pub use limits::Files;
pub use load::{Activity, Busy};

use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// What a result says about the machine it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's own name, such as `AMD EPYC`.
    pub cpu: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// The features that matter for the kernels, present or not, in a fixed order.
    pub features: Vec<Feature>,
    /// Data and unified caches, smallest level first.
    pub caches: Vec<Cache>,
    /// Logical CPUs this process may run on (affinity mask).
    pub logical_cpus: usize,
    /// Physical cores behind them.
    pub physical_cores: usize,
    /// CPUs' worth of time the cgroup grants, if it limits it.
    pub cpu_quota: Option<f64>,
    /// The default of `--threads`: see [`usable_threads`].
    pub usable_threads: usize,
    /// Installed memory.
    pub memory_total: Bytes,
    /// See [`usable_memory`].
    pub memory_usable: Bytes,
    /// Operating system and kernel.
    pub os: String,
    /// The CPU says that a hypervisor runs it.
    pub virtual_machine: bool,
    /// Policy of transparent huge pages (`madvise`, `always`, `never`), if known.
    pub huge_pages: Option<String>,
    /// Runnable tasks, average over one minute, at the time of detection.
    pub load_average: Option<f64>,
}

/// One cache as one core sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// Size.
    pub size: Bytes,
    /// Logical CPUs that share it.
    pub shared_by: usize,
}

impl Machine {
    /// Looks at the machine. Never fails: what cannot be read is left out or 1.
    pub fn detect() -> Machine {
        let files = Files::system();
        let system = sysinfo::System::new().ok().map(|mut s| {
            s.refresh_memory();
            s.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
            s
        });
        let cpu = system
            .as_ref()
            .and_then(|s| s.cpus().first().map(|c| c.brand().trim().to_string()))
            .unwrap_or_default();
        let cpu = if cpu.is_empty() {
            files.cpuinfo("model name").unwrap_or_else(|| "unknown CPU".into())
        } else {
            cpu
        };
        let flags =
            files.cpuinfo("flags").or_else(|| files.cpuinfo("Features")).unwrap_or_default();
        let total = system.as_ref().map_or(0, |s| s.total_memory());
        Machine {
            cpu: crate::units::shown(&cpu),
            arch: std::env::consts::ARCH.into(),
            features: features::detect(&flags),
            caches: files.caches(),
            logical_cpus: files.allowed_cpus().len().max(1),
            physical_cores: files.physical_cores().unwrap_or_else(fallback_cores),
            cpu_quota: files.cpu_quota(),
            usable_threads: usable_threads(),
            memory_total: Bytes(total),
            memory_usable: Bytes(usable_memory()),
            os: format!(
                "{} {}",
                sysinfo::System::name().unwrap_or_else(|_| std::env::consts::OS.into()),
                sysinfo::System::kernel_version().unwrap_or_default()
            )
            .trim()
            .to_string(),
            virtual_machine: flags.split_whitespace().any(|f| f == "hypervisor"),
            huge_pages: files.huge_pages(),
            load_average: files.load_average(),
        }
    }

    /// Whether the CPU has this feature (a name of [`Feature`]).
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f.name == feature && f.detected)
    }

    /// Whether the CPU multiplies bf16 numbers itself.
    pub fn native_bf16(&self) -> bool {
        ["avx512bf16", "amx-bf16", "bf16"].iter().any(|f| self.has(f))
    }

    /// Names of the detected features.
    pub fn present(&self) -> Vec<&str> {
        self.features.iter().filter(|f| f.detected).map(|f| f.name.as_str()).collect()
    }

    /// Names of the features that this CPU lacks.
    pub fn absent(&self) -> Vec<&str> {
        self.features.iter().filter(|f| !f.detected).map(|f| f.name.as_str()).collect()
    }

    /// A short name for folders of results: processor, cores, widest vectors; letters, digits and hyphens only, no host name.
    pub fn label(&self) -> String {
        let vectors = ["avx512f", "avx2", "neon"]
            .into_iter()
            .find(|f| self.has(f))
            .unwrap_or("scalar")
            .trim_end_matches('f');
        let mut slug = String::new();
        for c in self.cpu.replace("(R)", "").replace("(TM)", "").chars().take(32) {
            match c {
                c if c.is_ascii_alphanumeric() => slug.push(c.to_ascii_lowercase()),
                _ if !slug.ends_with('-') && !slug.is_empty() => slug.push('-'),
                _ => {}
            }
        }
        format!("{}-{}c-{vectors}", slug.trim_end_matches('-'), self.usable_threads)
    }

    /// What differs between two machines in a way that may move a ratio: one phrase a difference; empty for the same kind of machine.
    pub fn differences(&self, other: &Machine) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, a: String, b: String| {
            if a != b {
                found.push(format!("{what}: {a} → {b}"));
            }
        };
        compare("CPU", self.cpu.clone(), other.cpu.clone());
        compare("architecture", self.arch.clone(), other.arch.clone());
        compare("features", self.present().join(" "), other.present().join(" "));
        let compiled = |m: &Machine| {
            m.features
                .iter()
                .filter(|f| f.compiled)
                .map(|f| f.name.clone())
                .collect::<Vec<_>>()
                .join(" ")
        };
        compare("features compiled in", compiled(self), compiled(other));
        compare("usable cores", self.usable_threads.to_string(), other.usable_threads.to_string());
        let caches =
            |m: &Machine| m.caches.iter().map(Cache::to_string).collect::<Vec<_>>().join(", ");
        compare("caches", caches(self), caches(other));
        // The kernel reserves a little differently at every boot: a machine is another one only if its memory differs by more than 5 %.
        let (a, b) = (self.memory_total, other.memory_total);
        if a.0.abs_diff(b.0) as f64 > 0.05 * a.0.max(b.0) as f64 {
            compare("memory", a.to_string(), b.to_string());
        }
        compare("virtual machine", yes_no(self.virtual_machine), yes_no(other.virtual_machine));
        compare("operating system", self.os.clone(), other.os.clone());
        found
    }
}

impl std::fmt::Display for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "L{} {}", self.level, self.size)?;
        if self.shared_by > 1 {
            write!(f, " shared by {}", self.shared_by)?;
        }
        Ok(())
    }
}

fn yes_no(b: bool) -> String {
    if b { "yes".into() } else { "no".into() }
}

/// Where /sys says nothing: sysinfo's count, else what the standard library allows.
fn fallback_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    sysinfo::System::physical_core_count().unwrap_or(allowed).min(allowed).max(1)
}

/// The default of `--threads`: physical cores in the affinity mask (the fast ones of a processor with two kinds), at most the cgroup's
/// quota. Never 0.
pub fn usable_threads() -> usize {
    let files = Files::system();
    let cores = files.fast_cores().unwrap_or_else(fallback_cores);
    limits::threads_within(cores, files.cpu_quota())
}

/// Bytes that this process may still take: the least of what the cgroup, the resource limits and the machine have left.
pub fn usable_memory() -> u64 {
    let files = Files::system();
    let available = files.available_memory().or_else(|| {
        let mut system = sysinfo::System::new().ok()?;
        system.refresh_memory();
        Some(system.available_memory())
    });
    [available, files.cgroup_memory_left(), files.resource_limit_left()]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
}

/// Most resident memory this process has had so far, if the system tells.
pub fn peak_rss() -> Option<Bytes> {
    Files::system().status_bytes("VmHWM").map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_is_plausible_and_survives_a_round_trip() {
        let machine = Machine::detect();
        assert!(machine.usable_threads >= 1 && machine.usable_threads <= machine.physical_cores);
        assert!(machine.physical_cores <= machine.logical_cpus.max(1));
        assert!(machine.memory_usable <= machine.memory_total);
        let text = serde_json::to_string(&machine).unwrap();
        let again: Machine = serde_json::from_str(&text).unwrap();
        assert_eq!(machine, again);
        assert!(machine.differences(&again).is_empty());
    }

    #[test]
    fn labels_are_safe_as_folder_names() {
        let mut machine = Machine::detect();
        machine.cpu = "Intel(R) Xeon(R) / ../../etc: \u{1b}[31m Gold 6338".into();
        let label = machine.label();
        assert!(label.starts_with("intel-xeon-"), "{label}");
        assert!(label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{label}");
    }

    #[test]
    fn differences_name_both_sides() {
        let a = Machine::detect();
        let mut b = a.clone();
        b.cpu = "Other".into();
        b.usable_threads += 1;
        b.memory_total.0 += b.memory_total.0 / 100; // another boot
        let found = a.differences(&b);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains(&a.cpu) && found[0].contains("Other"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn peak_memory_grows_with_use() {
        let before = peak_rss().unwrap().0;
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_rss().unwrap().0 >= before.max(64 << 20), "{}", block.len());
    }
}
