//! What the program tells of itself: its version, completions for shells, its man page. In: the command line's definition. Out: text on
//! standard output.

use super::{Failure, results, status};
use crate::kernels::KernelSet;
use clap::Command;
use clap_complete::Shell;

/// `0.1.0 (commit …)`, the kernel sets that this CPU can run (the first is used), the features of the build.
pub fn version() -> String {
    let commit = results::commit().map_or(String::new(), |c| format!(" (commit {c})"));
    let features = [
        ("candle", cfg!(feature = "candle")),
        ("hub", cfg!(feature = "hub")),
        ("parquet", cfg!(feature = "parquet")),
    ];
    let on = |wanted: bool| {
        let names: Vec<&str> = features.iter().filter(|f| f.1 == wanted).map(|f| f.0).collect();
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    };
    format!(
        "{}{commit}\nkernel sets of this CPU: {}\nfeatures: {} (not built in: {})",
        env!("CARGO_PKG_VERSION"),
        KernelSet::available().iter().rev().map(|s| s.name()).collect::<Vec<_>>().join(", "),
        on(true),
        on(false)
    )
}

/// The command line without what `--help` does not show: the flags of fresh processes and of tests.
fn shown(command: &Command) -> Command {
    let named = |from: &Command| {
        let name: &str = from.get_name().to_string().leak();
        let made = Command::new(name).version(env!("CARGO_PKG_VERSION"));
        made.about(from.get_about().cloned().unwrap_or_default()).args(
            from.get_arguments()
                .filter(|a| !a.is_hide_set() && a.get_id() != "help" && a.get_id() != "version")
                .cloned(),
        )
    };
    let commands = command
        .get_subcommands()
        .filter(|s| s.get_name() != "help")
        .map(|s| named(s).disable_version_flag(true));
    named(command).subcommands(commands.collect::<Vec<_>>())
}

/// Completions for a shell.
pub fn completions(command: Command, shell: Shell) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut shown(&command), "llmopt", &mut text);
    print(text)
}

/// One page: the program's, then each command's flags as a part of it.
pub fn man(command: Command) -> Result<u8, Failure> {
    let mut command = shown(&command);
    command.build();
    let mut text = Vec::new();
    let failed = |e: std::io::Error| Failure::failed(format!("the man page: {e}"));
    let page = clap_mangen::Man::new(command.clone());
    page.render_title(&mut text)
        .and_then(|()| page.render_name_section(&mut text))
        .map_err(failed)?;
    page.render_description_section(&mut text).map_err(failed)?;
    for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
        let heading = format!(".SH \"{}\"\n", sub.get_name().to_uppercase());
        text.extend_from_slice(heading.as_bytes());
        let part = clap_mangen::Man::new(sub.clone());
        let mut of_command = Vec::new();
        part.render_description_section(&mut of_command).map_err(failed)?;
        part.render_synopsis_section(&mut of_command).map_err(failed)?;
        part.render_options_section(&mut of_command).map_err(failed)?;
        // Parts of a part.
        text.extend_from_slice(
            String::from_utf8_lossy(&of_command).replace(".SH ", ".SS ").as_bytes(),
        );
    }
    // Each part begins with roff's definition of an apostrophe: the first one is enough.
    let whole = String::from_utf8_lossy(&text).into_owned();
    let mut lines = whole.lines();
    let mut text: Vec<u8> =
        lines.by_ref().take(2).flat_map(|l| format!("{l}\n").into_bytes()).collect();
    let definition = |l: &&str| l.starts_with(".ie \\n(.g .ds Aq") || l.starts_with(".el .ds Aq");
    text.extend(lines.filter(|l| !definition(l)).flat_map(|l| format!("{l}\n").into_bytes()));
    let exits = ".SH \"EXIT STATUS\"\n0 done; 1 it failed; 2 bad usage, input or model; 3 a gate failed; 4 some prompts have error records; \
                 75 no memory or time, \\-\\-resume goes on; 130, 143 interrupted, \\-\\-resume goes on.\n";
    text.extend_from_slice(exits.as_bytes());
    page.render_version_section(&mut text).map_err(failed)?;
    print(text)
}

fn print(text: Vec<u8>) -> Result<u8, Failure> {
    results::print(&String::from_utf8_lossy(&text))?;
    Ok(status::DONE)
}
