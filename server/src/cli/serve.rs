//! `temponas serve`.

use clap::Args;

use crate::{
    config::{Config, ConfigFile, Settings},
    coordinator::Coordinator,
};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: Settings,
}

pub(super) async fn run(args: ServeArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let config = Config::load(args.settings, file)?;
    let tokens = config.demands_tokens();
    let coordinator = Coordinator::open(config).await?;
    let address = coordinator.address();
    tracing::info!(%address, tokens = if tokens { "required" } else { "not needed" }, "listening on http://{address}");
    coordinator.run(stop_signal()).await?;
    Ok(())
}

/// Ctrl-C or SIGTERM.
pub(super) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
