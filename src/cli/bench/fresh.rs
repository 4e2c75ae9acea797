//! Fresh processes of this program: how they are started, and what each does.

use super::Args;
use crate::bench::ablation::plan::Phases;
use crate::bench::ablation::subprocess::{self, FreshProcess};
use crate::bench::workload::Workload;
use crate::cli::console::Level;
use crate::cli::failure::status;
use crate::cli::loading::open_model;
use crate::cli::{Failure, results};
use crate::optimizations::Set;
use crate::pipeline::{Control, LoadedModel};
use std::time::Instant;

/// This program with the same flags, as a fresh process; nothing with `--quick`, unless phase 2 is about it.
pub fn child(args: &Args) -> Result<Option<FreshProcess>, Failure> {
    let program = std::env::current_exe()
        .map_err(|e| Failure::failed(format!("this program's own path: {e}")))?;
    let mut rest: Vec<std::ffi::OsString> = vec!["bench".into()];
    // Prompts and everything about files and gates have no part in it; the model and the numbers have.
    let shared = &args.shared;
    let mut flag = |name: &str, value: String| rest.push(format!("--{name}={value}").into());
    flag("model", shared.model.clone());
    flag("dtype", results::dtype_name(shared.dtype));
    flag("threads", shared.sizes().threads.to_string());
    flag("batch-size", shared.batch_size.to_string());
    shared.kv_memory.into_iter().for_each(|b| flag("kv-memory", b.0.to_string()));
    shared.kv_dtype.into_iter().for_each(|e| flag("kv-dtype", e.name().to_string()));
    shared.kernels.iter().for_each(|k| flag("kernels", k.clone()));
    flag("temperature", shared.temperature.to_string());
    flag("seed", shared.seed.to_string());
    shared.system.iter().for_each(|s| flag("system", s.clone()));
    shared
        .chat_template
        .iter()
        .for_each(|path| flag("chat-template", format!("@{}", path.display())));
    shared
        .template_arg
        .iter()
        .for_each(|(name, value)| flag("template-arg", format!("{name}={value}")));
    if shared.raw {
        rest.push("--raw".into());
    }
    rest.push("--fresh-process".into());
    let wanted = !args.quick || matches!(args.phase, Phases::Two);
    Ok(wanted.then_some(FreshProcess { program, args: rest }))
}

/// A fresh process's part.
pub fn process(args: &Args, set: &str, begun: Instant) -> Result<u8, Failure> {
    crate::cli::leave_with_parent();
    let names = set.split('+').filter(|n| *n != "none");
    let set = Set::named(names).map_err(Failure::usage)?;
    let loaded = LoadedModel::open(open_model(&args.shared, Level::Quiet)?)?;
    let workload = Workload::built_in(&args.shared.generation());
    let prompts: Vec<_> = workload.slices.iter().flatten().take(2).cloned().collect();
    let config = args.shared.config(set);
    let report = subprocess::measure(
        &loaded,
        &config,
        &args.shared.options(),
        &prompts,
        begun,
        &Control::default(),
    )?;
    let json = serde_json::to_string(&report).map_err(|e| Failure::failed(e.to_string()))?;
    results::print(&format!("{json}\n"))?;
    Ok(status::DONE)
}
