//! The `temponas` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    temponas_server::cli::main()
}
