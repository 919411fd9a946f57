//! Postgres' programs: where they are, and `initdb`.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{ClusterError, User};

/// The oldest major version that the migrations and queries are written for.
const OLDEST: u32 = 14;

/// A folder with `postgres` and `initdb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Programs {
    folder: PathBuf,
    major: u32,
}

impl Programs {
    /// The newest usable programs, or those of `major` where a cluster of that version is there: in the
    /// folder named, else on PATH, in the usual folders, and in the cache that `scripts/postgres` fills.
    pub(super) fn find(
        named: Option<&Path>,
        major: Option<u32>,
        cluster: &Path,
        user: Option<&User>,
    ) -> Result<Self, ClusterError> {
        let folders = named.map_or_else(candidates, |folder| vec![folder.to_owned()]);
        let mut looked = Vec::new();
        let mut usable: Vec<Self> = Vec::new();
        for folder in folders {
            match Self::in_folder(&folder, user) {
                Ok(programs) if !usable.contains(&programs) => usable.push(programs),
                Ok(_) => {}
                Err(reason) => looked.push(format!("{}: {reason}", folder.display())),
            }
        }
        let Some(first) = usable.first().cloned() else {
            let looked = if looked.is_empty() {
                "nowhere on this machine".to_owned()
            } else {
                looked.join("; ")
            };
            return Err(ClusterError::NoPrograms { oldest: OLDEST, looked });
        };
        match major {
            None => Ok(first),
            Some(made_by) => usable
                .iter()
                .find(|programs| programs.major == made_by)
                .cloned()
                .ok_or_else(|| {
                    let found: Vec<String> = usable.iter().map(|programs| programs.major.to_string()).collect();
                    ClusterError::OtherVersion {
                        folder: cluster.to_owned(),
                        made_by,
                        found: found.join(", "),
                    }
                }),
        }
    }

    fn in_folder(folder: &Path, user: Option<&User>) -> Result<Self, String> {
        let postgres = folder.join("postgres");
        let postgres = postgres.canonicalize().map_err(|_| "no postgres there".to_owned())?;
        let folder = postgres.parent().ok_or("no folder")?.to_owned();
        if !folder.join("initdb").exists() {
            return Err("no initdb there".to_owned());
        }
        if let Some(user) = user.filter(|user| !user.reaches(&postgres)) {
            return Err(format!(
                "the user `{}`, as whom Postgres must run for root, cannot get there",
                user.name
            ));
        }
        let output = Command::new(&postgres)
            .arg("--version")
            .output()
            .map_err(|error| error.to_string())?;
        let major = major_version(&String::from_utf8_lossy(&output.stdout)).ok_or("it does not run")?;
        if major < OLDEST {
            Err(format!("Postgres {major} is too old"))
        } else {
            Ok(Self { folder, major })
        }
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    /// Makes a cluster in an empty folder, whose superuser is `name`.
    pub(super) async fn initdb(&self, folder: &Path, name: &str, user: Option<&User>) -> Result<(), ClusterError> {
        let mut command = Command::new(self.folder.join("initdb"));
        command.arg("--pgdata").arg(folder).args(["--username", name]);
        command.args([
            "--encoding",
            "UTF8",
            "--no-locale",
            "--auth",
            "trust",
            "--no-instructions",
        ]);
        become_user(&mut command, user, folder);
        let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await;
        let failed = |detail: String| ClusterError::Failed {
            program: "initdb",
            detail,
        };
        let output = output
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Lets a command run as `user`, in a folder that the user can be in, and without our own Postgres settings.
pub(super) fn become_user(command: &mut Command, user: Option<&User>, folder: &Path) {
    command.current_dir(folder);
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    if let Some(user) = user {
        command
            .env("HOME", folder)
            .env("USER", &user.name)
            .uid(user.uid)
            .gid(user.gid);
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    folders.retain(|folder| folder.join("postgres").exists());
    let mut usual = Vec::new();
    for (parent, below) in [
        ("/usr/lib/postgresql", "bin"),
        ("/usr", "bin"),
        ("/usr/local", "bin"),
        ("/opt/homebrew/opt", "bin"),
    ] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            usual.push(entry.path().join(below));
        }
    }
    let home = env::var_os("HOME").map(PathBuf::from);
    let caches = [
        env::var_os("TEMPONAS_CACHE").map(PathBuf::from),
        home.map(|home| home.join(".cache/temponas")),
    ];
    for cache in caches
        .into_iter()
        .flatten()
        .chain([PathBuf::from("/var/cache/temponas")])
    {
        for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"postgres-") {
                usual.extend(program_folders(&entry.path()));
            }
        }
    }
    usual.retain(|folder| folder.join("postgres").exists());
    usual.sort_by_key(|folder| std::cmp::Reverse(number_in(folder)));
    folders.extend(usual);
    folders
}

/// Folders named `bin`, at most three levels below a package that was laid out in the cache.
fn program_folders(package: &Path) -> Vec<PathBuf> {
    let mut level = vec![package.to_owned()];
    let mut found = Vec::new();
    for _ in 0..3 {
        let below = level
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten();
        level = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.extend(level.iter().filter(|folder| folder.ends_with("bin")).cloned());
    }
    found
}

fn number_in(folder: &Path) -> u32 {
    let digits: String = folder.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

fn major_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL) ").nth(1)?;
    version.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_write_them() {
        assert_eq!(
            major_version("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_version("bash: no such thing"), None);
    }

    #[test]
    fn a_folder_without_programs_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let error = Programs::find(Some(folder.path()), None, Path::new("/x"), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no postgres there") && error.contains("apt-get install postgresql"),
            "{error}"
        );
    }
}
