//! `norma`: the command line around the library.
//!
//! In: arguments. Out: text for a person and an exit code; an error is one line with its causes.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command = cli::Cli::parse();
    match cli::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "where a command tells its failure")]
            {
                // `{:#}` puts the causes on the same line.
                eprintln!("norma: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
