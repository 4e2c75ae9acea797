//! The machine's section, the same in every report: facts, and the limits measured in the same run. In: plain data. Out: a [`Section`].

use super::{Block, Section};
use crate::machine::Machine;
use crate::roofline::Limits;
use crate::units::rate;

/// The section; `limits` where they were measured.
pub fn section(machine: &Machine, limits: Option<&Limits>) -> Section {
    let mut facts = facts(machine);
    let probes = limits.map_or(1, |l| l.probes);
    let best = if probes > 1 { format!("; the best of {probes} looks") } else { String::new() };
    for r in limits.iter().flat_map(|l| &l.rates) {
        let int8 = r.int8.map_or(String::new(), |i| format!(", int8 {:.0} Gop/s", i / 1e9));
        facts.push((
            format!("Measured, {} thread{}", r.threads, if r.threads == 1 { "" } else { "s" }),
            format!(
                "reads {} GB/s, f32 multiply-adds {:.0} GFLOP/s{int8}{best}",
                rate(r.read / 1e9),
                r.fma / 1e9
            ),
        ));
    }
    Section::new("Machine", vec![Block::Facts(facts)])
}

/// Names and values, a line each.
fn facts(machine: &Machine) -> Vec<(String, String)> {
    let names = |names: Vec<&str>| if names.is_empty() { "none".into() } else { names.join(" ") };
    let compiled =
        machine.features.iter().filter(|f| f.compiled).map(|f| f.name.as_str()).collect();
    let quota = machine.cpu_quota.map_or(String::new(), |q| format!(", quota {} CPUs", rate(q)));
    let mut facts = vec![
        ("Processor", machine.cpu.clone()),
        (
            "Cores",
            format!(
                "{} physical, {} logical, {} used by default{quota}",
                machine.physical_cores, machine.logical_cpus, machine.usable_threads
            ),
        ),
        ("Features", format!("{} (compiled in: {})", names(machine.present()), names(compiled))),
        ("Not there", machine.absent().join(" ")),
        ("Caches", machine.caches.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", ")),
        ("Memory", format!("{}, {} usable", machine.memory_total, machine.memory_usable)),
        (
            "System",
            format!(
                "{} on {}{}",
                machine.os,
                machine.arch,
                if machine.virtual_machine { ", virtual machine" } else { "" }
            ),
        ),
    ];
    facts.retain(|f| !f.1.is_empty());
    facts.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}
