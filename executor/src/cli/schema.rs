//! `wharf schema`: the JSON Schema of the files that people write, for editors.

use std::process::ExitCode;

use super::view::print;

/// Arguments of `wharf schema`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which file
    #[arg(value_enum)]
    file: FileKind,
}

/// The files that people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum FileKind {
    /// A job description
    Job,
    /// A farm file
    Farm,
}

/// Prints the schema.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let schema = match arguments.file {
        FileKind::Job => job_schema::json_schema(),
        FileKind::Farm => crate::config::schema(),
    };
    print(&serde_json::to_string_pretty(&schema)?)?;
    Ok(ExitCode::SUCCESS)
}
