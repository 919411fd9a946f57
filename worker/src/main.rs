//! `temponas-worker`: takes jobs from a coordinator, and the commands that make and check what it ships.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use protocol::WorkerId;
use protocol::devices::{Device, WorkerRegistration};
use protocol::jobs::JobKind;
use temponas_worker::client::Client;
use temponas_worker::data::default_cache;
use temponas_worker::jobs::Settings;
use temponas_worker::runtime::Worker;
use temponas_worker::{assets, full_size, lut_accuracy, profile, proxy_check, prune, prune_check, shim};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(Debug, Parser)]
#[command(
    name = "temponas-worker",
    version,
    about = "Measures, trains and scores for a temponas coordinator"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take jobs from a coordinator until stopped.
    Run(RunArgs),
    /// Train the small pretrained parts of a dataset.
    Assets(assets::AssetsArgs),
    /// Encode a dataset's training clips into the file that makes them needless elsewhere.
    Latents(assets::LatentsArgs),
    /// Check that the score of a space carries a signal.
    ProxyCheck(proxy_check::ProxyCheckArgs),
    /// Prune the backbone of trained parts.
    Prune(prune::PruneArgs),
    /// Check that a pruned backbone learns more from its full one than from nothing.
    PruneCheck(prune_check::PruneCheckArgs),
    /// Compare predicted with measured latency and peak memory of whole architectures.
    LutAccuracy(lut_accuracy::LutAccuracyArgs),
    /// Take training and sampling steps with the model at the paper's size.
    FullSize(full_size::FullSizeArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The coordinator's address: by default where `temponas serve` listens.
    #[arg(long, env = "TEMPONAS_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// A token of the role `worker`, or `device` for one that only profiles and verifies.
    #[arg(long, env = "TEMPONAS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Name of this device: lower-case letters, digits, `-`, `_`, `.` [default: from the processor's name].
    #[arg(long, env = "TEMPONAS_DEVICE_NAME")]
    device_name: Option<String>,
    /// Where libtorch computes: `cpu` or `cuda:N`.
    #[arg(long, env = "TEMPONAS_DEVICE", default_value = "cpu")]
    device: String,
    /// Threads of libtorch. Trainings are reproducible for one number of threads.
    #[arg(long, env = "TEMPONAS_THREADS", default_value_t = 1)]
    threads: u32,
    /// Job kinds to take.
    #[arg(
        long,
        env = "TEMPONAS_KINDS",
        value_delimiter = ',',
        default_value = "evaluate,profile,verify"
    )]
    kinds: Vec<JobKind>,
    /// Folder of clips, latents and artifacts.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache_dir: PathBuf,
    /// Folder of the trained parts for jobs that name none.
    #[arg(long, env = "TEMPONAS_ASSETS", default_value = "assets")]
    assets: PathBuf,
    /// End when standard input is closed: for a parent that must not leave workers behind.
    #[arg(long)]
    stop_on_stdin_eof: bool,
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // Before libtorch is first used: one binary serves machines with and without CUDA.
    let cuda = shim::load_cuda();
    match Cli::parse().command {
        Command::Run(args) => run(args, cuda),
        Command::Assets(args) => assets::command(&args),
        Command::Latents(args) => assets::latents_command(&args),
        Command::ProxyCheck(args) => proxy_check::command(&args),
        Command::Prune(args) => prune::command(&args, device_of(&args.device, cuda)?),
        Command::PruneCheck(args) => prune_check::command(&args),
        Command::LutAccuracy(args) => lut_accuracy::command(&args),
        Command::FullSize(args) => full_size::command(&args, device_of(&args.device, cuda)?),
    }
}

#[tokio::main]
async fn run(args: RunArgs, cuda: bool) -> anyhow::Result<()> {
    anyhow::ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    let device = device_of(&args.device, cuda)?;
    tch::set_num_threads(i32::try_from(args.threads).context("--threads is too large")?);
    let memory_bytes = memory_of(device);
    let processor = processor();
    let settings = Settings {
        device,
        threads: args.threads,
        cache: args.cache_dir.clone(),
        assets: args.assets.clone(),
        memory_bytes,
    };
    let registration = WorkerRegistration {
        id: WorkerId::new(),
        name: host_name(),
        device: Device {
            name: args.device_name.unwrap_or_else(|| slug(&processor, device)),
            description: format!(
                "{processor}, {:.0} GiB free, {}",
                memory_bytes as f64 / 1_073_741_824.0,
                args.device
            ),
            memory_bytes: Some(memory_bytes),
        },
        runtime: Some(profile::runtime_name(device, args.threads)),
        kinds: args.kinds,
        evaluators: vec!["built-in".to_owned()],
        memory_bytes,
    };
    let client = Client::new(&args.server, args.token.as_deref(), &args.cache_dir)?;
    let worker = Worker {
        registration,
        settings,
        client,
    };
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_stop(args.stop_on_stdin_eof).await;
        let _ = sender.send(true);
    });
    worker.run(stop).await
}

async fn wait_for_stop(stdin_counts: bool) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be watched; only a kill ends this worker");
        return std::future::pending().await;
    };
    let stdin_closed = async {
        if !stdin_counts {
            return std::future::pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut ignored = [0; 64];
        while matches!(stdin.read(&mut ignored).await, Ok(read) if read > 0) {}
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = stdin_closed => {}
    }
    tracing::info!("stopping");
}

fn device_of(text: &str, cuda: bool) -> anyhow::Result<tch::Device> {
    let index = match text {
        "cpu" => return Ok(tch::Device::Cpu),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
    };
    let index: usize = index.with_context(|| format!("--device is `{text}`; allowed: cpu, cuda:0, cuda:1, …"))?;
    anyhow::ensure!(
        cuda && tch::Cuda::is_available(),
        "--device is `{text}`, but libtorch finds no CUDA here"
    );
    let count = tch::Cuda::device_count();
    anyhow::ensure!(
        (index as i64) < count,
        "--device is `{text}`, but there are {count} CUDA devices"
    );
    Ok(tch::Device::Cuda(index))
}

fn memory_of(device: tch::Device) -> u64 {
    if let tch::Device::Cuda(index) = device
        && let Some((free, _)) = shim::cuda_memory(index)
    {
        return free;
    }
    let kib = proc_value(Path::new("/proc/meminfo"), "MemAvailable");
    kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(4 << 30, |kib| kib * 1024)
}

fn processor() -> String {
    proc_value(Path::new("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() {
        "worker".to_owned()
    } else {
        name.trim().to_owned()
    }
}

fn proc_value(file: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn slug(processor: &str, device: tch::Device) -> String {
    let plain = processor.replace("(R)", "").replace("(TM)", "").to_lowercase();
    let words: Vec<&str> = plain
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let name: String = words.join("-").chars().take(40).collect();
    match device {
        tch::Device::Cuda(index) => format!("{name}-cuda{index}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_gives_a_slug() {
        let name = slug("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", tch::Device::Cpu);
        assert_eq!(name, "intel-xeon-platinum-8488c-cpu-2-40ghz");
        assert_eq!(slug("A 1", tch::Device::Cuda(1)), "a-1-cuda1");
    }

    #[test]
    fn a_worker_looks_where_a_coordinator_listens_by_default() {
        use clap::CommandFactory as _;
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let server = run
            .get_arguments()
            .find(|argument| argument.get_id() == "server")
            .unwrap();
        assert_eq!(server.get_default_values(), ["http://127.0.0.1:8080"]);
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_what_is_allowed() {
        let error = device_of("tpu", false).unwrap_err().to_string();
        assert_eq!(error, "--device is `tpu`; allowed: cpu, cuda:0, cuda:1, …");
        assert!(device_of("cuda:0", false).is_err());
    }
}
