//! The command line: flags, then what they mean. In: arguments. Out: files, stdout, stderr and an exit status.
//! The only module that prints. `args` is what is typed, each command's `main` what is done.

use crate::machine::Files;
use crate::units::Bytes;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

pub mod args;
mod bench;
mod compare;
pub mod console;
mod doc;
mod failure;
mod files;
mod inputs;
mod loading;
mod progress;
pub mod results;
mod run;
mod setting;
mod shard;
mod signals;

pub use failure::{Failure, guarded, status};

/// Answers files of prompts with a language model on CPUs, and measures what each optimization is worth on this machine.
#[derive(Parser, Debug)]
#[command(name = "llmopt", version, long_version = doc::version().leak() as &str, max_term_width = 110, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Answer every prompt in the files ('-' is standard input)
    Run(Box<run::Args>),
    /// Measure what each optimization gains; write the speedup table
    Bench(Box<bench::Args>),
    /// Settings (f32 bf16), or two or more results files, side by side; the first is the reference
    Compare(Box<compare::Args>),
    /// Print a shell's completions: llmopt completions bash > /etc/bash_completion.d/llmopt
    Completions {
        /// Which shell's
        shell: clap_complete::Shell,
    },
    /// Print the man page: llmopt man | man -l -
    Man,
}

/// Runs the program and returns its exit status.
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version end with 0, everything else with 2. That standard output is closed is not told.
            let status = error.exit_code() as u8;
            let _ = plainly(error).print();
            return ExitCode::from(status);
        }
    };
    let advice = match &cli.command {
        Command::Run(args) if args.output.is_some() => signals::RESUME,
        _ => "",
    };
    let outcome = guarded(advice, || {
        within_limits().and_then(|()| match cli.command {
            Command::Run(args) => run::main(&args),
            Command::Bench(args) => bench::main(&args),
            Command::Compare(args) => compare::main(&args),
            Command::Completions { shell } => doc::completions(Cli::command(), shell),
            Command::Man => doc::man(Cli::command()),
        })
    });
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            console::error_line(&failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// The command line, with a note of which flags were typed.
fn parse() -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches()?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Run(args), Some((_, matches))) = (&mut cli.command, matches.subcommand()) {
        args.shared.note_typed(matches);
        // As for prompts: `-` is the standard stream.
        args.output = args.output.take().filter(|path| path.as_os_str() != "-");
    }
    Ok(cli)
}

/// clap's own tip for a value that begins with a hyphen, `-- -x`, makes a prompt file of it: the one that works is `--flag=-x`.
fn plainly(mut error: clap::Error) -> clap::Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let Some(ContextValue::String(odd)) = error.get(ContextKind::InvalidArg).cloned() else {
        return error;
    };
    let typed: Vec<String> = std::env::args().collect();
    let before = typed
        .iter()
        .position(|a| *a == odd)
        .and_then(|at| at.checked_sub(1))
        .and_then(|at| typed.get(at));
    let flag = before.filter(|b| b.starts_with("--") && b.len() > 2 && !b.contains('='));
    if error.kind() == ErrorKind::UnknownArgument && odd.starts_with('-') {
        error.remove(ContextKind::Suggested);
        if let Some(flag) = flag {
            let plain = odd.chars().all(|c| c.is_ascii_alphanumeric() || "-_.,:/+".contains(c));
            let value =
                if plain { odd.clone() } else { format!("'{}'", odd.replace('\'', r"'\''")) };
            let tip = format!("a value that begins with a hyphen is written {flag}={value}");
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        }
    }
    error
}

/// Descriptors that a command opens beyond its standard streams: prompts, output, signals, a model of a few files, and one to look up memory.
const DESCRIPTORS: usize = 10;

/// A limit on open files that would be met half-way, and then taken for something else, is said here.
fn enough_descriptors() -> Result<(), Failure> {
    let mut open = Vec::new();
    for _ in 0..DESCRIPTORS {
        match std::fs::File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(e) if crate::system::is_too_many_files(&e) => {
                return Err(Failure::failed(format!(
                    "too many open files: {} more can be opened and {DESCRIPTORS} are needed; raise the limit (ulimit -n)",
                    open.len()
                )));
            }
            // A system without it has other limits.
            Err(_) => break,
        }
    }
    Ok(())
}

/// For a fresh process that measures for another one: it ends when that one does.
fn leave_with_parent() {
    let mut orphaned = crate::system::orphaned();
    let watch = move || {
        while !orphaned() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        std::process::exit(i32::from(status::FAILED));
    };
    let _ = std::thread::Builder::new().name("parent watch".into()).spawn(watch);
}

/// The least address space to begin with.
const LEAST: Bytes = Bytes(40 << 20);

/// Under a limit on the address space (`ulimit -v`) glibc's heaps, 64 MB of addresses for each thread, would use it up, and small
/// allocations fail: there all threads share one heap. Too low a limit to begin with is said here.
fn within_limits() -> Result<(), Failure> {
    enough_descriptors()?;
    let Some(left) = Files::system().resource_limit_left().map(Bytes) else { return Ok(()) };
    if left < LEAST {
        let message = format!(
            "the limit on memory (ulimit -v or -d) leaves {left}, and {LEAST} are needed to begin: raise it"
        );
        return Err(Failure { status: status::LEFT, message });
    }
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        crate::kernels::one_heap();
    }
    Ok(())
}
