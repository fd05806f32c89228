//! `wharf completions`: what a shell needs to complete our command line.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::view::print;

/// Arguments of `wharf completions`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The shell that will read it
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut command = super::Arguments::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "wharf", &mut script);
    print(String::from_utf8(script)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
