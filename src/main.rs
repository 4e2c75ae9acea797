//! The program: parse, run, print the error, exit status. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    llmopt::cli::main()
}
