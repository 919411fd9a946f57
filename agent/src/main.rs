//! `temponas-agent`: measures graphs on this device for a coordinator.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use job_client::{Client, Worker, host};
use protocol::WorkerId;
use protocol::devices::{Device, WorkerRegistration};
use protocol::jobs::JobKind;
use temponas_agent::child::Children;
use temponas_agent::jobs::Agent;
use temponas_agent::journal::Journal;
use temponas_agent::lut_accuracy::{self, LutAccuracyArgs};
use temponas_agent::measure::{self, Request};
use temponas_agent::runtime::{LIBRARY, Provider, Runtime, RuntimeError};
use temponas_agent::system;
use tokio::sync::watch;

#[derive(Debug, Parser)]
#[command(
    name = "temponas-agent",
    version,
    about = "Measures exported graphs on this device for a temponas coordinator"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take jobs from a coordinator until stopped.
    Run(RunArgs),
    /// Show the library's version and the execution providers that it offers.
    Providers(RuntimeArgs),
    /// Compare predicted with measured latency of whole exported architectures.
    LutAccuracy(AccuracyArgs),
    /// Measure one graph: a question on standard input, the answer on standard output.
    #[command(hide = true)]
    Measure(RuntimeArgs),
}

#[derive(Debug, Args)]
struct RuntimeArgs {
    /// ONNX Runtime's library.
    #[arg(long, env = LIBRARY, value_name = "FILE")]
    library: PathBuf,
    /// What runs the graphs: `cpu`, `xnnpack`, `coreml`, `qnn`, `nnapi`, `cuda`, of which the library must offer it.
    #[arg(long, env = "TEMPONAS_PROVIDER", default_value = "cpu", value_parser = parse_provider)]
    provider: Provider,
    /// Threads of the runtime.
    #[arg(long, env = "TEMPONAS_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
}

fn parse_provider(text: &str) -> Result<Provider, RuntimeError> {
    text.parse()
}

impl RuntimeArgs {
    fn load(&self) -> Result<Runtime, RuntimeError> {
        Runtime::load(&self.library, self.provider, self.threads)
    }
}

#[derive(Debug, Args)]
struct AccuracyArgs {
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    comparison: LutAccuracyArgs,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// The coordinator's address.
    #[arg(long, env = "TEMPONAS_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// A token of the role `device`.
    #[arg(long, env = "TEMPONAS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name of this device: lower-case letters, digits, `-`, `_`, `.` [default: from the processor's name].
    #[arg(long, env = "TEMPONAS_DEVICE_NAME")]
    device_name: Option<String>,
    /// Memory that a graph may take, in MiB [default: what is free].
    #[arg(long, env = "TEMPONAS_MEMORY_MB")]
    memory_mb: Option<u64>,
    /// Seconds that one graph may take altogether.
    #[arg(long, default_value_t = 3600)]
    graph_seconds: u64,
    /// Job kinds to take.
    #[arg(
        long,
        env = "TEMPONAS_KINDS",
        value_delimiter = ',',
        default_value = "profile,profile_model"
    )]
    kinds: Vec<JobKind>,
    /// Folder of graphs and of what waits for the coordinator.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache_dir: PathBuf,
    /// End when standard input is closed.
    #[arg(long)]
    stop_on_stdin_eof: bool,
}

fn default_cache() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    home.join(".cache/temponas/agent")
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Providers(args) => providers(&args),
        Command::LutAccuracy(args) => lut_accuracy::command(&args.runtime.load()?, &args.comparison),
        Command::Measure(args) => measure(&args),
    }
}

fn providers(args: &RuntimeArgs) -> anyhow::Result<()> {
    let runtime = args.load()?;
    println!("{}", runtime.name().version);
    for provider in Runtime::offered() {
        println!("{provider}");
    }
    Ok(())
}

fn measure(args: &RuntimeArgs) -> anyhow::Result<()> {
    system::end_with_parent();
    let mut asked = String::new();
    std::io::stdin().read_to_string(&mut asked)?;
    let request: Request = serde_json::from_str(&asked).context("the question")?;
    let found = measure::measure(&args.load()?, &request);
    std::io::stdout().write_all(&serde_json::to_vec(&found)?)?;
    Ok(())
}

#[tokio::main]
async fn run(args: RunArgs) -> anyhow::Result<()> {
    let runtime = args.runtime.load()?;
    let offered: Vec<String> = Runtime::offered().iter().map(ToString::to_string).collect();
    let name = runtime.name();
    // Children load it for themselves.
    drop(runtime);
    if let Some(wrong) = args
        .kinds
        .iter()
        .find(|kind| !matches!(kind, JobKind::Profile | JobKind::ProfileModel))
    {
        anyhow::bail!("--kinds names {wrong}; allowed: profile, profile_model");
    }
    let memory_bytes = match args.memory_mb {
        Some(mebibytes) => mebibytes.checked_mul(1 << 20).context("--memory-mb is too large")?,
        None => host::available_memory(),
    };
    ensure!(memory_bytes > 0, "--memory-mb is 0; it must be at least 1");
    let device_name = args.device_name.unwrap_or_else(|| host::slug(&host::processor()));
    let registration = WorkerRegistration {
        id: WorkerId::new(),
        name: host::name(),
        device: Device {
            name: device_name.clone(),
            description: format!(
                "{}, {:.1} GiB for a graph, ONNX Runtime {} ({})",
                system::description(),
                memory_bytes as f64 / 1_073_741_824.0,
                name.version,
                offered.join(", ")
            ),
            memory_bytes: Some(memory_bytes),
        },
        runtime: Some(name.clone()),
        kinds: args.kinds,
        evaluators: Vec::new(),
        memory_bytes,
    };
    let agent = Agent {
        device: device_name,
        runtime: name,
        children: Children {
            program: std::env::current_exe().context("this program's own file")?,
            library: args.runtime.library.canonicalize()?,
            provider: args.runtime.provider,
            threads: args.runtime.threads,
            patience: Duration::from_secs(args.graph_seconds.max(1)),
        },
        memory_bytes,
        journal: Journal::new(&args.cache_dir),
        graphs: args.cache_dir.join("graphs"),
    };
    let worker = Worker {
        registration,
        work: agent,
        client: Client::new(&args.server, args.token.as_deref(), &args.cache_dir)?,
        cache: args.cache_dir,
        advertise: None,
    };
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        host::wait_for_stop(args.stop_on_stdin_eof).await;
        let _ = sender.send(true);
    });
    worker.run(stop).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_provider_is_refused_with_the_list() {
        let arguments = ["temponas-agent", "providers", "--library", "x", "--provider", "tpu"];
        let error = Cli::try_parse_from(arguments).unwrap_err().to_string();
        assert!(
            error.contains("`tpu` is not known; known: cpu, xnnpack, coreml"),
            "{error}"
        );
    }
}
