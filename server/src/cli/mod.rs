//! The `temponas` command: one file a command.

mod ablate;
mod base;
mod bench_search;
mod compress_decoder;
mod demo;
mod deploy;
mod encode;
mod evaluate;
mod export;
mod front;
mod jobs;
mod list;
mod lut;
mod lut_compare;
mod lut_import;
mod model_args;
mod outcome;
mod progress;
mod prune;
mod recommend;
mod render;
mod serve;
mod steer;
mod submit;
mod token;
mod train_final;
mod watch;

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::devices::RuntimeName;

use crate::{
    api::docs,
    client::Client,
    config::{ClientSettings, ConfigFile},
    embedded_postgres,
};

/// Hardware-aware neural architecture search: measures what building blocks cost on a device, trains and
/// scores candidates on a fleet of workers, and returns the Pareto front.
///
/// Every setting is a flag, an environment variable or a key of the settings file; flags go before
/// variables, variables before the file.
#[derive(Debug, Parser)]
#[command(name = "temponas", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    file: ConfigFile,

    /// What to log, such as `info` or `temponas_server=debug,sqlx=warn` [default: info for serve and demo,
    /// warn for the rest]
    #[arg(long, env = "TEMPONAS_LOG", value_name = "FILTER", global = true)]
    log: Option<String>,

    /// How to write the log
    #[arg(long, env = "TEMPONAS_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a coordinator
    Serve(serve::ServeArgs),
    /// Submit a search over a space file
    Submit(submit::SubmitArgs),
    /// List searches
    List(list::ListArgs),
    /// Follow a search: progress, front so far, budget spent
    Watch(watch::WatchArgs),
    /// Print or plot a search's front
    Front(front::FrontArgs),
    /// The best verified candidate within limits, and what to try next
    Recommend(recommend::RecommendArgs),
    /// Hold a search: what runs is finished, nothing new starts
    Pause(steer::SteerArgs),
    /// Go on with a held search
    Resume(steer::SteerArgs),
    /// End a search
    Cancel(steer::SteerArgs),
    /// List jobs: of a search or of all, with why they failed
    Jobs(jobs::JobsArgs),
    /// One job with its attempts and their logs
    Job(jobs::JobArgs),
    /// End a job that belongs to no search
    CancelJob(jobs::CancelJobArgs),
    /// Encode a folder of captioned clips and images that the workers have, once for all trainings
    Encode(encode::EncodeArgs),
    /// Prune a spatial backbone by distillation from the full one
    Prune(prune::PruneArgs),
    /// Score a trained model on the dimensions of VBench
    Evaluate(evaluate::EvaluateArgs),
    /// Take a candidate to a device: final training, distillation, compression of the decoder, export, profile, and a
    /// report of it all
    Deploy(Box<deploy::DeployArgs>),
    /// List deployments
    Deployments(deploy::DeploymentsArgs),
    /// One deployment with its steps: show it, follow it, take it up again, write its report
    Deployment(deploy::DeploymentArgs),
    /// Fill a table of the paper over a candidate: several trainings of each cell
    Ablate(Box<ablate::AblateArgs>),
    /// One ablation with its table: show it, follow it, take it up again
    Ablation(ablate::AblationArgs),
    /// Train a found model to its end, on images and videos
    TrainFinal(train_final::TrainFinalArgs),
    /// Distil a trained model to few steps without guidance
    Distill(train_final::DistillArgs),
    /// Make the VAE's decoder small and fast
    CompressDecoder(compress_decoder::CompressDecoderArgs),
    /// Write a model, or the blocks of a space, as graphs that run without libtorch
    Export(export::ExportArgs),
    /// Measure an exported model on a device
    ProfileModel(export::ProfileModelArgs),
    /// Look-up tables of measured blocks
    Lut(lut::LutArgs),
    /// Access tokens, directly in the coordinator's database
    Token(token::TokenArgs),
    /// A whole search on this machine: coordinator, workers, page
    Demo(demo::DemoArgs),
    /// Searches over public benchmark tables: evaluations until the table's own front is reached
    BenchSearch(bench_search::BenchSearchArgs),
    /// Print the OpenAPI document
    Openapi,
    #[command(name = embedded_postgres::SHIM, hide = true)]
    RunUntilParentDies {
        parent: u32,
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// What every command needs that talks to a coordinator.
#[derive(Debug, Args)]
#[command(next_help_heading = "Coordinator")]
pub(crate) struct Remote {
    #[command(flatten)]
    settings: ClientSettings,
}

impl Remote {
    fn client(self, file: &ConfigFile) -> anyhow::Result<Client> {
        let settings = self.settings.load(file)?;
        Ok(Client::new(
            settings.url.as_deref().unwrap_or_default(),
            settings.token,
        )?)
    }
}

/// A runtime as it is written on the command line.
fn parse_runtime(text: &str) -> Result<RuntimeName, String> {
    let ::lut::Runtime { name, version } = text.parse().map_err(|error: ::lut::RuntimeError| error.to_string())?;
    Ok(RuntimeName { name, version })
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before anything else starts: this process is about to become another program.
    if let Command::RunUntilParentDies {
        parent,
        program,
        arguments,
    } = &cli.command
    {
        let error = embedded_postgres::run_until_parent_dies(*parent, program, arguments).err();
        eprintln!(
            "cannot run {}: {}",
            program.display(),
            error.map_or_else(String::new, |error| error.to_string())
        );
        return ExitCode::FAILURE;
    }
    start_log(&cli);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            let _ = std::io::stdout().flush();
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let file = cli.file;
    match cli.command {
        Command::Serve(args) => serve::run(args, &file).await?,
        Command::Submit(args) => return submit::run(args, &file).await,
        Command::List(args) => list::run(args, &file).await?,
        Command::Watch(args) => return watch::run(args, &file).await,
        Command::Front(args) => front::run(args, &file).await?,
        Command::Recommend(args) => recommend::run(args, &file).await?,
        Command::Pause(args) => steer::run(args, "pause", &file).await?,
        Command::Resume(args) => steer::run(args, "resume", &file).await?,
        Command::Cancel(args) => steer::run(args, "cancel", &file).await?,
        Command::Jobs(args) => jobs::list(args, &file).await?,
        Command::Job(args) => jobs::show(args, &file).await?,
        Command::CancelJob(args) => jobs::cancel(args, &file).await?,
        Command::Encode(args) => return encode::run(args, &file).await,
        Command::Prune(args) => return prune::run(args, &file).await,
        Command::Evaluate(args) => return evaluate::run(args, &file).await,
        Command::Deploy(args) => return deploy::deploy(*args, &file).await,
        Command::Deployments(args) => deploy::list(args, &file).await?,
        Command::Deployment(args) => return deploy::show(args, &file).await,
        Command::Ablate(args) => return ablate::ablate(*args, &file).await,
        Command::Ablation(args) => return ablate::show(args, &file).await,
        Command::TrainFinal(args) => return train_final::train_final(args, &file).await,
        Command::Distill(args) => return train_final::distill(args, &file).await,
        Command::CompressDecoder(args) => return compress_decoder::run(args, &file).await,
        Command::Export(args) => return export::export(args, &file).await,
        Command::ProfileModel(args) => return export::profile_model(args, &file).await,
        Command::Lut(args) => lut::run(args, &file).await?,
        Command::Token(args) => token::run(args, &file).await?,
        Command::Demo(args) => return demo::run(args, &file).await,
        Command::BenchSearch(args) => {
            let reached = bench_search::run(args, &file).await?;
            return Ok(if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Openapi => render::print(docs::text())?,
        Command::RunUntilParentDies { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn start_log(cli: &Cli) {
    let serves = matches!(cli.command, Command::Serve(_));
    let default = if serves { "info,sqlx=warn" } else { "warn,sqlx=error" };
    let filter = cli.log.as_deref().unwrap_or(default);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("--log {filter}: {error}; logging `{default}` instead");
        tracing_subscriber::EnvFilter::new(default)
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_ready_files_for_kubernetes_name_what_a_coordinator_knows() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let variables: Vec<&str> = serve
            .get_arguments()
            .filter_map(|argument| argument.get_env()?.to_str())
            .collect();
        let text = include_str!("../../../deploy/kubernetes/coordinator.yaml");
        let named = text.lines().filter_map(|line| line.trim().strip_prefix("- name: "));
        let named: Vec<&str> = named
            .filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()))
            .collect();
        assert!(named.len() >= 3);
        for name in named {
            assert!(variables.contains(&name), "{name}");
        }
        assert!(text.contains("args: [serve]"));
        let create = command
            .find_subcommand("token")
            .and_then(|token| token.find_subcommand("create"));
        let flags: Vec<&str> = create
            .unwrap()
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .collect();
        for line in text.lines().filter(|line| line.contains("temponas token create")) {
            let words = line.split_once("temponas token create").unwrap().1.split_whitespace();
            for flag in words.filter_map(|word| word.strip_prefix("--")) {
                assert!(flags.contains(&flag), "--{flag}");
            }
        }
    }

    #[test]
    fn every_command_and_flag_is_described() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
            for argument in arguments {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
