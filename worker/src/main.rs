//! `temponas-worker`: takes jobs from a coordinator, and the commands that make and check what it ships.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use job_client::{Client, Worker, host};
use protocol::WorkerId;
use protocol::devices::{Device, WorkerRegistration};
use protocol::jobs::{JobKind, VBENCH_EVALUATOR};
use temponas_worker::data::{default_cache, sharded};
use temponas_worker::jobs::Settings;
use temponas_worker::scoring::vbench::{self, Environment};
use temponas_worker::{
    assets, decoder, distill, distributed, export_check, export_space, full_size, lut_accuracy, onnx, parity, profile,
    proxy_check, prune, prune_check, shim,
};
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
    /// Encode a folder of captioned clips and pictures to latents in shards.
    Encode(sharded::EncodeArgs),
    /// Take published weights over as the parts of a name.
    Import(assets::ImportArgs),
    /// Check that the score of a space carries a signal.
    ProxyCheck(proxy_check::ProxyCheckArgs),
    /// Score sampled clips with the published package `vbench`, and compare with our own computation.
    VbenchCheck(vbench::check::VbenchCheckArgs),
    /// Prune the backbone of trained parts.
    Prune(prune::PruneArgs),
    /// Check that a pruned backbone learns more from its full one than from nothing.
    PruneCheck(prune_check::PruneCheckArgs),
    /// Check that a distilled model is as good in few steps as the diffusion model it came from.
    DistillCheck(distill::DistillCheckArgs),
    /// Train a decoder for the frozen encoder of trained parts, such as a separable one.
    Decoder(decoder::DecoderArgs),
    /// Check that a separable decoder is faster than the dense one that it learned from, and nearly as good.
    DecoderCheck(decoder::DecoderCheckArgs),
    /// Compare predicted with measured latency and peak memory of whole architectures.
    LutAccuracy(lut_accuracy::LutAccuracyArgs),
    /// Compare steps of one process with steps of several on this machine.
    DataParallel(distributed::DataParallelArgs),
    /// Take training and sampling steps with the model at the paper's size.
    FullSize(full_size::FullSizeArgs),
    /// Export operators, the small model and the full-size UNet, and compare ONNX Runtime with libtorch.
    ExportCheck(export_check::ExportCheckArgs),
    /// Write a space's blocks and whole architectures as ONNX graphs, for `temponas-agent lut-accuracy`.
    ExportSpace(export_space::ExportSpaceArgs),
    /// Run our side of a comparison with other implementations: what `make parity` calls.
    Parity(parity::ParityArgs),
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
        default_value = "evaluate,profile,verify,encode_latents,prune_backbone,benchmark,train_final,distill,compress_decoder,export"
    )]
    kinds: Vec<JobKind>,
    /// Evaluators that this worker brings: what scores a space or a benchmark must be among them.
    #[arg(long, env = "TEMPONAS_EVALUATORS", value_delimiter = ',', default_value = "built-in")]
    evaluators: Vec<String>,
    /// Host by which other workers reach this one, for jobs that several do together [default: the address by which it
    /// reaches the coordinator].
    #[arg(long, env = "TEMPONAS_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
    /// Folder of clips, latents and artifacts.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache_dir: PathBuf,
    /// Folder of the trained parts for jobs that name none.
    #[arg(long, env = "TEMPONAS_ASSETS", default_value = "assets")]
    assets: PathBuf,
    /// Folder of datasets to encode, each a folder of captioned clips and images [default: `datasets` in the cache].
    #[arg(long, env = "TEMPONAS_DATA")]
    data_dir: Option<PathBuf>,
    /// Python of an environment with the package `vbench`: this worker then brings the evaluator `vbench`.
    #[arg(long, env = "TEMPONAS_VBENCH_PYTHON")]
    vbench_python: Option<PathBuf>,
    /// Hours that the package may take for one dimension.
    #[arg(long, env = "TEMPONAS_VBENCH_HOURS", default_value_t = 12)]
    vbench_hours: u32,
    /// ONNX Runtime's library, for jobs that export graphs; `scripts/onnxruntime` fetches it.
    #[arg(long, env = onnx::LIBRARY)]
    onnxruntime: Option<PathBuf>,
    /// Python of an environment with the package `coremltools`: this worker then exports Core ML packages too;
    /// `scripts/coreml-env` makes one.
    #[arg(long, env = "TEMPONAS_COREML_PYTHON")]
    coreml_python: Option<PathBuf>,
    /// Weights of LPIPS, as `scripts/lpips` lays them out: decoders are then compared by it too.
    #[arg(long, env = "TEMPONAS_LPIPS")]
    lpips: Option<PathBuf>,
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
        Command::Encode(args) => sharded::encode_command(&args),
        Command::Import(args) => assets::import_command(&args),
        Command::ProxyCheck(args) => proxy_check::command(&args),
        Command::VbenchCheck(args) => vbench::check::command(&args),
        Command::Prune(args) => prune::command(&args, device_of(&args.device, cuda)?),
        Command::PruneCheck(args) => prune_check::command(&args),
        Command::DistillCheck(args) => distill::command(&args),
        Command::Decoder(args) => decoder::command(&args, device_of(&args.device, cuda)?),
        Command::DecoderCheck(args) => decoder::check_command(&args),
        Command::LutAccuracy(args) => lut_accuracy::command(&args),
        Command::DataParallel(args) => distributed::command(&args),
        Command::FullSize(args) => full_size::command(&args, device_of(&args.device, cuda)?),
        Command::ExportCheck(args) => export_check::command(&args),
        Command::ExportSpace(args) => export_space::command(&args),
        Command::Parity(args) => parity::command(&args),
    }
}

#[tokio::main]
async fn run(args: RunArgs, cuda: bool) -> anyhow::Result<()> {
    anyhow::ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    let device = device_of(&args.device, cuda)?;
    tch::set_num_threads(i32::try_from(args.threads).context("--threads is too large")?);
    let memory_bytes = memory_of(device);
    let processor = host::processor();
    let vbench = args.vbench_python.as_deref().map(|python| {
        let limit = Duration::from_secs(3600 * u64::from(args.vbench_hours.max(1)));
        Environment::probe(python, limit)
    });
    let vbench = vbench.transpose().context("--vbench-python")?;
    let mut evaluators = args.evaluators;
    let named = evaluators.iter().any(|name| name == VBENCH_EVALUATOR);
    match &vbench {
        Some(environment) => {
            tracing::info!("brings the evaluator {VBENCH_EVALUATOR}: {}", environment.line(device));
            evaluators.extend((!named).then(|| VBENCH_EVALUATOR.to_owned()));
        }
        None => anyhow::ensure!(
            !named,
            "--evaluators names {VBENCH_EVALUATOR}, which needs --vbench-python"
        ),
    }
    let settings = Settings {
        device,
        threads: args.threads,
        cache: args.cache_dir.clone(),
        assets: args.assets.clone(),
        data: args.data_dir.unwrap_or_else(|| args.cache_dir.join("datasets")),
        memory_bytes,
        vbench,
        onnxruntime: args.onnxruntime,
        coreml: args.coreml_python,
        lpips: args.lpips,
    };
    let registration = WorkerRegistration {
        id: WorkerId::new(),
        name: host::name(),
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
        evaluators,
        memory_bytes,
    };
    let client = Client::new(&args.server, args.token.as_deref(), &args.cache_dir)?;
    let worker = Worker {
        registration,
        work: settings,
        cache: args.cache_dir,
        client,
        advertise: args.advertise,
    };
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        host::wait_for_stop(args.stop_on_stdin_eof).await;
        let _ = sender.send(true);
    });
    worker.run(stop).await
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
    host::available_memory()
}

fn slug(processor: &str, device: tch::Device) -> String {
    let name = host::slug(processor);
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
    fn the_ready_files_for_clusters_name_what_a_worker_knows() {
        use clap::CommandFactory as _;
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let flags: Vec<&str> = run.get_arguments().filter_map(clap::Arg::get_long).collect();
        let variables: Vec<&str> = run
            .get_arguments()
            .filter_map(|argument| argument.get_env()?.to_str())
            .collect();
        // Of the container's entry point, of `default_cache`, and of the batch script's own.
        let others = ["TEMPONAS_TOKEN_FILE", "TEMPONAS_CACHE", "TEMPONAS_WORKER"];
        let slurm = include_str!("../../deploy/slurm/worker.sbatch");
        let started = slurm.split_once("\" run ").unwrap().1;
        let deployment = include_str!("../../deploy/kubernetes/worker-deployment.yaml");
        let job = include_str!("../../deploy/kubernetes/worker-job.yaml");
        let arguments = |text: &'static str| text.split_once("args: [run").unwrap().1.split_once(']').unwrap().0;
        for text in [started, arguments(deployment), arguments(job)] {
            let words = text.split(|c: char| c.is_whitespace() || c == ',');
            let named: Vec<&str> = words.filter_map(|word| word.strip_prefix("--")).collect();
            assert!(named.len() >= 2, "{text}");
            for name in named {
                assert!(flags.contains(&name), "--{name}");
            }
            let kinds = text.split_once("--kinds").unwrap().1;
            let kinds = kinds
                .trim_start_matches([',', ' ', '"'])
                .split(['"', '\n'])
                .next()
                .unwrap();
            for kind in kinds.split(',') {
                kind.parse::<JobKind>().unwrap();
            }
        }
        for text in [slurm, deployment, job] {
            let words = text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
            for name in words.filter(|word| word.starts_with("TEMPONAS_")) {
                assert!(variables.contains(&name) || others.contains(&name), "{name}");
            }
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_what_is_allowed() {
        let error = device_of("tpu", false).unwrap_err().to_string();
        assert_eq!(error, "--device is `tpu`; allowed: cpu, cuda:0, cuda:1, …");
        assert!(device_of("cuda:0", false).is_err());
    }
}
