//! A machine's facts, for the end of every report.

use crate::machine::Machine;

/// Names and values, a line each.
pub fn facts(machine: &Machine) -> Vec<(String, String)> {
    let names = |names: Vec<&str>| if names.is_empty() { "none".into() } else { names.join(" ") };
    let compiled = machine.features.iter().filter(|f| f.compiled).map(|f| f.name.as_str()).collect();
    let quota = machine.cpu_quota.map_or(String::new(), |q| format!(", quota {} CPUs", crate::units::rate(q)));
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
        ("Caches", machine.caches.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", ")),
        ("Memory", format!("{}, {} usable", machine.memory_total, machine.memory_usable)),
        (
            "System",
            format!("{} on {}{}", machine.os, machine.arch, if machine.virtual_machine { ", virtual machine" } else { "" }),
        ),
    ];
    facts.retain(|f| !f.1.is_empty());
    facts.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}
