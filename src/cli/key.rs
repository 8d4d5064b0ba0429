//! `norma key new`: a new API key, shown once.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use norma::http::Role;
use norma::http::keys::{is_name, new_key};

/// Arguments of `norma key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Print a new key, and the line that makes a server know it.
    New {
        /// Whose key it is: a hospital or a department.
        #[arg(long)]
        tenant: String,
        /// What it may do: infer, manage, metrics.
        #[arg(long, value_delimiter = ',', required = true)]
        roles: Vec<Role>,
    },
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "the output of a command")]
pub fn run(args: KeyArgs) -> anyhow::Result<()> {
    let KeyCommand::New { tenant, roles } = args.command;
    if !is_name(&tenant) {
        bail!("--tenant must be 1 to 64 characters of A-Z a-z 0-9 . _ - and not begin with .");
    }
    let (key, entry) = new_key(&tenant, roles).context("the system gave no random numbers")?;
    println!("The key, which is stored nowhere and not shown again:\n\n  {key}\n");
    println!("The line for the file that `norma serve --keys` reads:\n");
    println!("{}", serde_json::to_string(&entry)?);
    Ok(())
}
