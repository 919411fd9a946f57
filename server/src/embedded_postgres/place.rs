//! Where the cluster and its socket lie.

use std::{
    fs,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{ClusterError, User};

/// Clusters of data folders that the user of Postgres cannot reach.
const SHARED: &str = "/var/lib/temponas";

/// Beside such a cluster, the path of its data folder.
const OWNER_NOTE: &str = "data-folder";

/// A socket's address holds 107 bytes, of which its file name takes `/.s.PGSQL.5432`.
const SOCKET_FOLDER_LIMIT: usize = 107 - "/.s.PGSQL.5432".len();

/// Where the cluster lies.
#[derive(Debug)]
pub(super) struct Place {
    /// Holds the cluster and what is beside it; only its owner may enter.
    home: PathBuf,
    cluster: PathBuf,
    socket: PathBuf,
}

impl Place {
    /// `postgres` in the data folder, or, where `user` cannot reach that, a folder of [`SHARED`] to which
    /// `postgres` is a link.
    pub(super) fn choose(data_dir: &Path, user: Option<&User>) -> Result<Self, ClusterError> {
        let data_dir = data_dir
            .canonicalize()
            .map_err(ClusterError::files("cannot find the data folder", data_dir))?;
        let home = data_dir.join("postgres");
        if let Some(user) = user
            && !home.is_dir()
            && !make_reachable(&data_dir, user)
        {
            remove_orphans(Path::new(SHARED));
            let shared = Path::new(SHARED).join(digest(&data_dir));
            make_folder(Path::new(SHARED), 0o755, None)?;
            make_folder(&shared, 0o700, Some(user))?;
            fs::write(shared.join(OWNER_NOTE), data_dir.as_os_str().as_encoded_bytes())
                .map_err(ClusterError::files("cannot write into", &shared))?;
            link(&shared, &home).map_err(ClusterError::files("cannot make the link", &home))?;
        } else if !home.is_dir() {
            make_folder(&home, 0o700, user)?;
        }
        let home = home.canonicalize().map_err(ClusterError::files("cannot find", &home))?;
        let cluster = home.join("cluster");
        let socket = home.join("socket");
        let socket = if socket.as_os_str().len() <= SOCKET_FOLDER_LIMIT {
            socket
        } else {
            PathBuf::from("/tmp").join(format!("temponas-{}", digest(&home)))
        };
        Ok(Self { home, cluster, socket })
    }

    pub(super) fn cluster(&self) -> &Path {
        &self.cluster
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    /// The last lines of Postgres' log.
    pub(super) fn log_tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = fs::File::open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(cannot be read: {error})"))
    }

    /// The major version that made the cluster; absent before there is one.
    pub(super) fn major_version(&self) -> Option<u32> {
        fs::read_to_string(self.cluster.join("PG_VERSION"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// An empty folder for `initdb`, without what an interrupted one left.
    pub(super) fn fresh(&self, user: Option<&User>) -> Result<PathBuf, ClusterError> {
        let fresh = self.home.join("cluster.new");
        for leftover in [&fresh, &self.cluster] {
            match fs::remove_dir_all(leftover) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(ClusterError::files("cannot remove", leftover)(error));
                }
                _ => {}
            }
        }
        make_folder(&fresh, 0o700, user)?;
        Ok(fresh)
    }

    /// Makes the socket's folder. One in `/tmp` that belongs to someone else is refused.
    pub(super) fn prepare_socket(&self, user: Option<&User>) -> Result<(), ClusterError> {
        make_folder(&self.socket, 0o700, user)?;
        let found = fs::symlink_metadata(&self.socket).map_err(ClusterError::files("cannot look at", &self.socket))?;
        let owner = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
        if found.is_dir() && found.uid() == owner && found.mode().trailing_zeros() >= 6 {
            return Ok(());
        }
        let error = io::Error::other("it is no folder of ours that is closed to others");
        Err(ClusterError::files("cannot put a socket into", &self.socket)(error))
    }
}

/// Lets `user` through the data folder, which is ours to open, if the way to it is open already.
fn make_reachable(data_dir: &Path, user: &User) -> bool {
    let way_is_open = data_dir.parent().is_none_or(|parent| user.reaches(parent));
    if !way_is_open {
        return false;
    }
    if !user.enters(data_dir)
        && let Ok(found) = fs::metadata(data_dir)
        && found.uid() == rustix::process::geteuid().as_raw()
    {
        let opened = fs::Permissions::from_mode(found.mode() & 0o7777 | 0o001);
        return fs::set_permissions(data_dir, opened).is_ok();
    }
    user.enters(data_dir)
}

/// Removes clusters whose data folders are gone.
fn remove_orphans(shared: &Path) {
    let homes = fs::read_dir(shared)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for home in homes {
        let Ok(owner) = fs::read_to_string(home.join(OWNER_NOTE)) else {
            continue;
        };
        let alive = super::Postmaster::of(&home.join("cluster")).is_some();
        if !alive && !Path::new(&owner).exists() {
            tracing::info!(folder = %home.display(), data_folder = owner, "removing a cluster whose data folder is gone");
            if let Err(error) = fs::remove_dir_all(&home) {
                tracing::warn!(%error, folder = %home.display(), "it could not be removed");
            }
        }
    }
}

fn make_folder(path: &Path, mode: u32, owner: Option<&User>) -> Result<(), ClusterError> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(ClusterError::files("cannot make the folder", path)(error)),
    }
    match owner {
        Some(user) => {
            chown(path, Some(user.uid), Some(user.gid)).map_err(ClusterError::files("cannot change the owner of", path))
        }
        None => Ok(()),
    }
}

fn link(target: &Path, link: &Path) -> io::Result<()> {
    match symlink(target, link) {
        // A link whose target is gone.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(link)?;
            symlink(target, link)
        }
        outcome => outcome,
    }
}

fn digest(path: &Path) -> String {
    Sha256::digest(path.as_os_str().as_encoded_bytes())[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_gets_its_socket_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let short = Place::choose(folder.path(), None).unwrap();
        assert!(short.socket().starts_with(folder.path().canonicalize().unwrap()));
        let deep = folder.path().join("a-rather-long-name-of-a-folder".repeat(4));
        fs::create_dir_all(&deep).unwrap();
        let long = Place::choose(&deep, None).unwrap();
        assert!(
            long.socket().as_os_str().len() <= SOCKET_FOLDER_LIMIT,
            "{:?}",
            long.socket()
        );
        assert_ne!(long.socket(), short.socket());
    }

    #[test]
    fn a_data_folder_of_ours_is_opened_and_a_closed_way_to_it_is_not() {
        let outer = tempfile::tempdir().unwrap();
        let data_dir = outer.path().join("data");
        fs::create_dir(&data_dir).unwrap();
        let stranger = User {
            name: "stranger".to_owned(),
            uid: 4_000_000,
            gid: 4_000_000,
        };
        fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!make_reachable(&data_dir, &stranger));
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_reachable(&data_dir, &stranger));
        assert_eq!(
            fs::metadata(&data_dir).unwrap().mode() & 0o777,
            0o701,
            "passable, not readable"
        );
        assert_eq!(fs::metadata(outer.path()).unwrap().mode() & 0o777, 0o755);
    }
}
