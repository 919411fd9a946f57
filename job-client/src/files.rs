//! Files that are whole or not there, whenever the process ends.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

/// Writes a file whole or not at all: beside its place, flushed to disk, then renamed.
///
/// # Errors
/// What the system says.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(bytes)?;
    persist(file, path)
}

/// A file beside the place where it will be, for [`persist`]; it goes if it is dropped before.
///
/// # Errors
/// What the system says.
pub fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    NamedTempFile::new_in(folder)
}

/// Puts a whole file in its place: flushed to disk, then renamed.
///
/// # Errors
/// What the system says.
pub fn persist(file: NamedTempFile, path: &Path) -> std::io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// As [`write_atomically`], with the name of the file beside it: whoever is killed leaves that one, and the next to
/// write it overwrites it. Only one process may write it at a time.
///
/// # Errors
/// What the system says.
pub fn write_through(beside: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Puts a file that never changes in a second place, at once and whole: as a link where the disk can.
///
/// # Errors
/// What the system says.
pub fn lay_out(file: &Path, place: &Path) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::hard_link(file, place) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => write_atomically(place, &fs::read(file)?),
        _ => Ok(()),
    }
}

/// Whether a name from outside names a file of the folder that it is joined to, and no other.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_in_one_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/checkpoint");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_name_without_a_way_is_plain() {
        assert!(is_plain("weights.bin"));
        for name in ["", "..", "a/", "a/b", "/a", "../a"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
