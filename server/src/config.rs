//! Settings of the coordinator: from flags, environment and a file, in this order.

use std::{
    env, fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Deserialize;

/// Where the coordinator listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// Settings as they are written: a flag, a variable and a key of the file each, all optional.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on. Any other than loopback makes tokens mandatory [default: 127.0.0.1:8080]
    #[arg(long, env = "TEMPONAS_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Folder of the private database and of artifacts [default: ~/.local/share/temponas]
    #[arg(long, env = "TEMPONAS_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,

    /// Postgres to use, as postgres://…; without it a private cluster is run in the data folder
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<Secret>,

    /// The most connections to the database [default: 16]
    #[arg(long, env = "TEMPONAS_DATABASE_CONNECTIONS", value_name = "NUMBER")]
    pub database_connections: Option<u32>,

    /// Folder with `postgres` and `initdb` for the private cluster [default: found on PATH, in the usual
    /// folders, or in the cache that `scripts/postgres` fills]
    #[arg(long, env = "TEMPONAS_POSTGRES_BIN", value_name = "FOLDER")]
    pub postgres_bin: Option<PathBuf>,

    /// Artifact store: a folder or a URL (file://, and s3://, gs://, az:// where built in)
    /// [default: `artifacts` in the data folder]
    #[arg(long, env = "TEMPONAS_ARTIFACTS", value_name = "FOLDER|URL")]
    pub artifacts: Option<String>,

    /// The longest artifact that is taken, in bytes [default: 4294967296, 4 GiB]
    #[arg(long, env = "TEMPONAS_MAX_ARTIFACT_BYTES", value_name = "NUMBER")]
    pub max_artifact_bytes: Option<u64>,

    /// Who needs a token: `auto` asks for one unless the address is loopback, `required` always [default: auto]
    #[arg(long, env = "TEMPONAS_TOKENS", value_enum)]
    pub tokens: Option<TokenMode>,

    /// How long a worker keeps a job without a heartbeat [default: 30s]
    #[arg(long, env = "TEMPONAS_LEASE", value_name = "DURATION")]
    pub lease: Option<Span>,

    /// How often workers are asked to send a heartbeat [default: a third of the lease]
    #[arg(long, env = "TEMPONAS_HEARTBEAT", value_name = "DURATION")]
    pub heartbeat: Option<Span>,

    /// How long the first workers of a job for several wait for the rest, before they do something else [default: 5m]
    #[arg(long, env = "TEMPONAS_GATHER", value_name = "DURATION")]
    pub gather: Option<Span>,

    /// How often all running searches are looked at, whether or not something happened [default: 15s]
    #[arg(long, env = "TEMPONAS_SWEEP", value_name = "DURATION")]
    pub sweep: Option<Span>,
}

/// How the commands reach a coordinator.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    /// The coordinator's address [default: http://127.0.0.1:8080]
    #[arg(long, env = "TEMPONAS_URL", value_name = "URL")]
    pub url: Option<String>,

    /// Access token, where the coordinator demands one
    #[arg(long, env = "TEMPONAS_TOKEN", value_name = "SECRET", hide_env_values = true)]
    pub token: Option<Secret>,
}

/// The settings file: one section for the coordinator, one for the commands that talk to it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    coordinator: Settings,
    client: ClientSettings,
}

/// The file's name and place.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigFile {
    /// Settings file: TOML with the sections `coordinator` and `client`, whose keys are the long flags with
    /// `_` for `-` [default: ~/.config/temponas/config.toml, if it is there]
    #[arg(long, env = "TEMPONAS_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// Who needs a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenMode {
    /// Nobody on a loopback address, everybody elsewhere.
    #[default]
    Auto,
    /// Everybody.
    Required,
}

/// A duration as people write it: `90s`, `5m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("`{text}` is no duration ({error}); write it like 90s, 5m or 2h 30m"))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Text that is not shown in logs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Settings as they are used.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Folder of the private database and of artifacts.
    pub data_dir: PathBuf,
    /// Postgres of someone else; absent for the private cluster.
    pub database_url: Option<Secret>,
    /// The most connections to the database.
    pub database_connections: u32,
    /// Folder of Postgres' programs, where it was named.
    pub postgres_bin: Option<PathBuf>,
    /// Folder or URL of the artifact store.
    pub artifacts: String,
    /// The longest artifact that is taken, in bytes.
    pub max_artifact_bytes: u64,
    /// Who needs a token.
    pub tokens: TokenMode,
    /// Length of a lease.
    pub lease: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// How long the first of a gang waits for the rest.
    pub gather: Duration,
    /// Time between looks at all running searches.
    pub sweep: Duration,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file's text is wrong.
    #[error("the settings file {path} is wrong: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be accepted.
    #[error("{setting}: {message}")]
    Invalid {
        /// Which setting.
        setting: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
}

impl Config {
    /// Settings from `given` (flags and environment), the file, and defaults, in this order.
    ///
    /// # Errors
    /// When the file is wrong, or a value out of its range.
    pub fn load(given: Settings, file: &ConfigFile) -> Result<Self, ConfigError> {
        given.or(File::read(file)?.coordinator).resolve()
    }
}

impl ClientSettings {
    /// Settings from `self` (flags and environment), the file, and defaults, in this order.
    ///
    /// # Errors
    /// When the file is wrong.
    pub fn load(self, file: &ConfigFile) -> Result<Self, ConfigError> {
        let other = File::read(file)?.client;
        let url = self
            .url
            .or(other.url)
            .unwrap_or_else(|| format!("http://{DEFAULT_LISTEN}"));
        // An empty variable is how scripts unset it.
        let token = self.token.or(other.token).filter(|token| !token.reveal().is_empty());
        Ok(Self { url: Some(url), token })
    }
}

impl File {
    fn read(file: &ConfigFile) -> Result<Self, ConfigError> {
        let path = match &file.config {
            Some(path) => path.clone(),
            None => match default_config_file() {
                Some(path) if path.exists() => path,
                _ => return Ok(Self::default()),
            },
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|source| ConfigError::Malformed {
                path,
                source: Box::new(source),
            }),
            Err(source) => Err(ConfigError::Unreadable { path, source }),
        }
    }
}

impl Settings {
    /// Takes from `other` what is not set here.
    fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            data_dir: self.data_dir.or(other.data_dir),
            database_url: self.database_url.or(other.database_url),
            database_connections: self.database_connections.or(other.database_connections),
            postgres_bin: self.postgres_bin.or(other.postgres_bin),
            artifacts: self.artifacts.or(other.artifacts),
            max_artifact_bytes: self.max_artifact_bytes.or(other.max_artifact_bytes),
            tokens: self.tokens.or(other.tokens),
            lease: self.lease.or(other.lease),
            heartbeat: self.heartbeat.or(other.heartbeat),
            gather: self.gather.or(other.gather),
            sweep: self.sweep.or(other.sweep),
        }
    }

    fn resolve(self) -> Result<Config, ConfigError> {
        let invalid = |setting, message: &str| {
            Err(ConfigError::Invalid {
                setting,
                message: message.to_owned(),
            })
        };
        let data_dir = match self.data_dir.or_else(default_data_dir) {
            Some(folder) => std::path::absolute(&folder).map_err(|error| ConfigError::Invalid {
                setting: "data_dir",
                message: error.to_string(),
            })?,
            None => return invalid("data_dir", "HOME is not set, so name a folder"),
        };
        let lease = self.lease.map_or(Duration::from_secs(30), |span| span.0);
        let heartbeat = self.heartbeat.map_or(lease / 3, |span| span.0);
        if lease < Duration::from_secs(1) {
            return invalid("lease", "must be at least 1s");
        }
        if heartbeat.is_zero() || heartbeat > lease / 2 {
            return invalid("heartbeat", "must be above zero and at most half of the lease");
        }
        let database_connections = self.database_connections.unwrap_or(16);
        if !(2..=1000).contains(&database_connections) {
            return invalid("database_connections", "must be from 2 to 1000");
        }
        let artifacts = self
            .artifacts
            .unwrap_or_else(|| data_dir.join("artifacts").display().to_string());
        // An empty DATABASE_URL is how scripts unset it.
        let database_url = self.database_url.filter(|url| !url.reveal().is_empty());
        Ok(Config {
            listen: self.listen.unwrap_or(DEFAULT_LISTEN),
            data_dir,
            database_url,
            database_connections,
            postgres_bin: self.postgres_bin,
            artifacts,
            max_artifact_bytes: self.max_artifact_bytes.unwrap_or(4 << 30),
            tokens: self.tokens.unwrap_or_default(),
            lease,
            heartbeat,
            gather: self.gather.map_or(Duration::from_secs(300), |span| span.0),
            sweep: self.sweep.map_or(Duration::from_secs(15), |span| span.0),
        })
    }
}

impl Config {
    /// The defaults over a data folder.
    ///
    /// # Errors
    /// When the folder's path cannot be made absolute.
    pub fn for_folder(data_dir: &Path) -> Result<Self, ConfigError> {
        Settings {
            data_dir: Some(data_dir.to_owned()),
            ..Settings::default()
        }
        .resolve()
    }

    /// Whether requests without a token are refused.
    #[must_use]
    pub fn demands_tokens(&self) -> bool {
        self.tokens == TokenMode::Required || !self.listen.ip().is_loopback()
    }
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

fn default_data_dir() -> Option<PathBuf> {
    let shared = env::var_os("XDG_DATA_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    Some(
        shared
            .or_else(|| home().map(|home| home.join(".local/share")))?
            .join("temponas"),
    )
}

fn default_config_file() -> Option<PathBuf> {
    let shared = env::var_os("XDG_CONFIG_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    Some(
        shared
            .or_else(|| home().map(|home| home.join(".config")))?
            .join("temponas/config.toml"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn settings(toml: &str) -> Settings {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn what_was_given_goes_before_the_file_and_the_file_before_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(
            &file,
            "[coordinator]\ndata_dir = '/from/file'\nlease = '1m'\nlisten = '127.0.0.1:1'\n",
        )
        .unwrap();
        let given = settings("listen = '127.0.0.1:2'");
        let config = Config::load(given, &ConfigFile { config: Some(file) }).unwrap();
        assert_eq!(config.listen.port(), 2, "given");
        assert_eq!(config.data_dir, Path::new("/from/file"), "file");
        assert_eq!(
            (config.lease, config.heartbeat),
            (Duration::from_secs(60), Duration::from_secs(20)),
            "file"
        );
        assert_eq!(config.sweep, Duration::from_secs(15), "default");
        assert_eq!(
            config.artifacts, "/from/file/artifacts",
            "default that follows another setting"
        );
    }

    #[test]
    fn the_readme_names_where_it_listens() {
        let readme = include_str!("../../README.md");
        let other_ports = readme
            .match_indices("127.0.0.1:")
            .filter(|(start, _)| !readme[*start..].starts_with(&DEFAULT_LISTEN.to_string()));
        assert_eq!(other_ports.count(), 0);
        assert!(readme.contains(&format!("http://{DEFAULT_LISTEN}")));
    }

    #[test]
    fn an_unknown_key_of_the_file_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, "[coordinator]\ncolour = 'red'\n").unwrap();
        let error = Config::load(Settings::default(), &ConfigFile { config: Some(file) })
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2") && error.contains("colour"), "{error}");
    }

    #[test]
    fn a_heartbeat_that_cannot_keep_a_lease_is_refused() {
        let error = settings("lease = '10s'\nheartbeat = '9s'")
            .resolve()
            .unwrap_err()
            .to_string();
        assert_eq!(error, "heartbeat: must be above zero and at most half of the lease");
    }

    #[test]
    fn any_address_but_loopback_demands_tokens() {
        let demands = |toml: &str| settings(toml).resolve().unwrap().demands_tokens();
        assert!(!demands(""));
        assert!(!demands("listen = '[::1]:80'"));
        assert!(demands("listen = '0.0.0.0:80'"));
        assert!(demands("listen = '10.0.0.1:80'"));
        assert!(demands("tokens = 'required'"));
    }

    #[test]
    fn the_commands_find_their_coordinator_in_the_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, "[client]\nurl = 'http://there:1'\ntoken = 'from file'\n").unwrap();
        let given = ClientSettings {
            url: None,
            token: Some(Secret("given".to_owned())),
        };
        let client = given.load(&ConfigFile { config: Some(file) }).unwrap();
        assert_eq!(client.url.as_deref(), Some("http://there:1"));
        assert_eq!(client.token.unwrap().reveal(), "given");
    }

    #[test]
    fn the_database_url_is_not_shown() {
        let config = settings("database_url = 'postgres://u:hunter2@h/d'").resolve().unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
