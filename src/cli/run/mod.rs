//! `llmopt run`: answer every prompt in the files.

use super::Failure;
use super::args::{Shared, Toggles, optimizations_help};
use std::path::PathBuf;

/// `run`'s flags, as typed.
#[derive(clap::Args, Debug)]
#[command(after_help = optimizations_help())]
pub struct Args {
    /// Prompt files: .jsonl, .csv, .txt; '-' is standard input
    #[arg(required = true)]
    pub prompts: Vec<PathBuf>,
    #[command(flatten)]
    pub shared: Shared,
    #[command(flatten)]
    pub toggles: Toggles,
}

/// Runs it.
pub fn main(args: &Args) -> Result<u8, Failure> {
    let _config = args.shared.config(args.toggles.set()?);
    Err(Failure::failed("run is not wired in yet"))
}
