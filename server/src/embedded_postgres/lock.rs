//! Lock files of the data folder. The system frees them when their holder dies.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The lock files of a data folder.
#[derive(Debug)]
pub(super) struct Locks {
    folder: PathBuf,
}

/// Held while the cluster is started or stopped: one process at a time.
#[derive(Debug)]
pub(super) struct Starting(#[expect(dead_code, reason = "held, not read")] File);

/// Held while the cluster is used: any number of processes.
#[derive(Debug)]
pub(super) struct Usage(#[expect(dead_code, reason = "held, not read")] File);

impl Locks {
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let locks = Self {
            folder: data_dir.to_owned(),
        };
        locks.file("starting")?;
        locks.file("users")?;
        Ok(locks)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) async fn starting(&self) -> io::Result<Starting> {
        let file = self.file("starting")?;
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
        locked.map_err(io::Error::other)?.map(Starting)
    }

    pub(super) fn use_cluster(&self) -> io::Result<Usage> {
        let file = self.file("users")?;
        file.lock_shared()?;
        Ok(Usage(file))
    }

    /// Whether any process uses the cluster; only under the starting lock, and without using it oneself.
    pub(super) fn is_used(&self) -> bool {
        self.file("users")
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    fn file(&self, name: &str) -> io::Result<File> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.folder.join(format!("postgres.{name}.lock")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_cluster_is_used_until_the_last_user_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks::open(folder.path()).unwrap();
        assert!(!locks.is_used());
        let (one, other) = (locks.use_cluster().unwrap(), locks.use_cluster().unwrap());
        drop(one);
        assert!(locks.is_used());
        drop(other);
        assert!(!locks.is_used());
    }
}
