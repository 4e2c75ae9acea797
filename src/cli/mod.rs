//! The command line: flags, then what they mean. In: arguments. Out: files, stdout, stderr and an exit status.

use std::process::ExitCode;

/// Runs the program and returns its exit status.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
