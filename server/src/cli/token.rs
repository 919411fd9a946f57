//! `temponas token`: works on the database itself, so that the first token needs no token.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use protocol::{
    TokenId,
    tokens::{NewToken, Role, TokenView},
};

use super::render;
use crate::{
    app::Clock,
    auth,
    config::{Config, ConfigFile, Settings, Span},
    coordinator::Database,
    store::Store,
};

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token; its secret is shown this once
    Create {
        /// What its holder may do
        #[arg(long, value_enum)]
        role: RoleName,
        /// When it ends, such as `30d`; never unless given
        #[arg(long, value_name = "DURATION")]
        expires: Option<Span>,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Revoke a token for good
    Revoke {
        /// The token's id, as `list` shows it, or the beginning or end of it
        id: String,
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleName {
    /// Everything, tokens included
    Admin,
    /// Submits and steers searches, imports tables
    Researcher,
    /// Takes and reports jobs, moves artifacts
    Worker,
    /// Takes profile and verify jobs, uploads samples
    Device,
    /// Reads
    Viewer,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Admin => Self::Admin,
            RoleName::Researcher => Self::Researcher,
            RoleName::Worker => Self::Worker,
            RoleName::Device => Self::Device,
            RoleName::Viewer => Self::Viewer,
        }
    }
}

pub(super) async fn run(args: TokenArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let settings = match &args.command {
        TokenCommand::Create { settings, .. }
        | TokenCommand::List { settings }
        | TokenCommand::Revoke { settings, .. } => Settings::clone(settings),
    };
    let database = Database::open(&Config::load(settings, file)?).await?;
    let outcome = work(args.command, &database.store()).await;
    database.close().await?;
    outcome
}

async fn work(command: TokenCommand, store: &Store) -> anyhow::Result<()> {
    let now = Clock::System.now();
    match command {
        TokenCommand::Create {
            role, expires, name, ..
        } => {
            let expires_in_seconds = expires.map(|span| span.0.as_secs());
            let created = auth::create(
                store,
                NewToken {
                    role: role.into(),
                    name,
                    expires_in_seconds,
                },
                now,
            )
            .await?;
            eprintln!(
                "token {} ({}), {}",
                created.token.id,
                auth::role_name(created.token.role),
                state(&created.token, now)
            );
            eprintln!("its secret, which is not shown again:");
            render::say(&created.secret)?;
        }
        TokenCommand::List { .. } => {
            let mut table = render::table(["id", "role", "name", "state", "last used"]);
            for token in all(store).await? {
                let last_used = token.last_used_at.map_or_else(|| "never".to_owned(), time);
                table.add_row([
                    token.id.to_string(),
                    auth::role_name(token.role).to_owned(),
                    token.name.clone().unwrap_or_default(),
                    state(&token, now),
                    last_used,
                ]);
            }
            render::say(&table.to_string())?;
        }
        TokenCommand::Revoke { id, .. } => {
            let ids: Vec<TokenId> = all(store).await?.into_iter().map(|token| token.id).collect();
            let id = crate::client::expand(&id, "token", &ids)?;
            store.revoke_token(id, now).await?;
            render::say(&format!("token {id} is revoked"))?;
        }
    }
    Ok(())
}

async fn all(store: &Store) -> anyhow::Result<Vec<TokenView>> {
    let mut tokens: Vec<TokenView> = Vec::new();
    loop {
        let page = store.tokens(tokens.last().map(|token| token.id), 1000).await?;
        if page.is_empty() {
            return Ok(tokens);
        }
        tokens.extend(page);
    }
}

fn state(token: &TokenView, now: DateTime<Utc>) -> String {
    match (token.revoked_at, token.expires_at) {
        (Some(at), _) => format!("revoked {}", time(at)),
        (None, Some(end)) if end <= now => format!("expired {}", time(end)),
        (None, Some(end)) => format!("valid until {}", time(end)),
        (None, None) => "valid for good".to_owned(),
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}
