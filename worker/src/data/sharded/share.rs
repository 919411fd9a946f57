//! Files that several processes make together: each takes one that nobody holds, and makes it whole or not at all.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ShardError, Stored, WORK};
use crate::checkpoint::{write_atomically, write_through};

/// How often a file that another process makes is looked for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Makes the file of a number; it says now and then how far it is, from 0 to 1, and whether to go on.
pub(crate) type Make<'a> =
    dyn FnMut(usize, &mut dyn FnMut(f64) -> Result<(), ShardError>) -> Result<Vec<u8>, ShardError> + 'a;

/// What has been done so far.
pub(crate) enum Done<'a> {
    /// Files that are there, with the share of the one being made.
    Files(f64),
    /// A file that is there now, made by this process or another, or found.
    File(usize, &'a Stored),
}

/// Makes the files of a folder that are missing or damaged, together with all processes that do the same there. The
/// system lets go of a killed process's file, and another makes it.
///
/// # Errors
/// As `make` and `tell`, and where a file cannot be written.
pub(crate) fn make_together(
    folder: &Path,
    names: &[String],
    make: &mut Make<'_>,
    tell: &mut dyn FnMut(Done<'_>) -> Result<(), ShardError>,
) -> Result<Vec<Stored>, ShardError> {
    let work = folder.join(WORK);
    std::fs::create_dir_all(&work).map_err(ShardError::file(&work))?;
    let mut stored: Vec<Option<Stored>> = vec![None; names.len()];
    loop {
        for (i, name) in names.iter().enumerate() {
            if stored[i].is_none()
                && let Some(found) = standing(folder, name)?
            {
                tell(Done::File(i, stored[i].insert(found)))?;
            }
        }
        let missing: Vec<usize> = (0..names.len()).filter(|&i| stored[i].is_none()).collect();
        let there = names.len() - missing.len();
        let mut share = |of_one: f64| tell(Done::Files((there as f64 + of_one) / names.len().max(1) as f64));
        share(0.0)?;
        // One at a time: another process may have made the next meanwhile.
        let mut held = None;
        for &i in &missing {
            if let Some(lock) = hold(&work, &names[i])? {
                held = Some((i, lock));
                break;
            }
        }
        match held {
            None if missing.is_empty() => return Ok(stored.into_iter().flatten().collect()),
            None => std::thread::sleep(LOOK_EVERY),
            Some((i, _lock)) => {
                if standing(folder, &names[i])?.is_none() {
                    let bytes = make(i, &mut share)?;
                    publish(folder, &names[i], &bytes)?;
                }
            }
        }
    }
}

/// What is remembered of a file: what it should be, and how it looked when its digest was last found right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    stored: Stored,
    modified_ns: Option<u64>,
}

impl Memory {
    fn path(folder: &Path, name: &str) -> PathBuf {
        folder.join(WORK).join(format!("{name}.json"))
    }

    /// None where there is none, or a killed process left half of it.
    fn read(folder: &Path, name: &str) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(folder, name)).ok()?).ok()
    }

    fn write(&self, folder: &Path, name: &str) -> std::io::Result<()> {
        write_atomically(&Self::path(folder, name), &serde_json::to_vec(self)?)
    }
}

/// Writes a file. Its digest is noted first, so that a file that is there always has one to be held against.
fn publish(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
    let stored = Stored {
        bytes: bytes.len() as u64,
        sha256: hexadecimal(&Sha256::digest(bytes)),
    };
    let path = folder.join(name);
    let memory = Memory {
        stored,
        modified_ns: None,
    };
    memory.write(folder, name).map_err(ShardError::file(&path))?;
    let partial = folder.join(WORK).join(format!("{name}.partial"));
    write_through(&partial, &path, bytes).map_err(ShardError::file(&path))
}

/// The file where it is there and as it was written; one that is not is said to be damaged and made again.
fn standing(folder: &Path, name: &str) -> Result<Option<Stored>, ShardError> {
    let Some(memory) = Memory::read(folder, name).filter(|_| folder.join(name).exists()) else {
        return Ok(None);
    };
    match verify(folder, name, &memory.stored) {
        Ok(()) => Ok(Some(memory.stored)),
        Err(ShardError::Damaged { path, found, .. }) => {
            tracing::warn!(path = %path.display(), found, "a damaged shard is made again");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Looks whether a file is the one that is expected. Its digest is computed once, and again when the file's time of
/// change is another.
///
/// # Errors
/// [`ShardError::Damaged`] where it is not.
pub(super) fn verify(folder: &Path, name: &str, expected: &Stored) -> Result<(), ShardError> {
    let path = folder.join(name);
    let damaged = |found: &dyn std::fmt::Display| ShardError::Damaged {
        path: path.clone(),
        found: found.to_string(),
        expected: expected.to_string(),
    };
    let metadata = std::fs::metadata(&path).map_err(ShardError::file(&path))?;
    if metadata.len() != expected.bytes {
        return Err(damaged(&format!("{} bytes", metadata.len())));
    }
    let modified_ns = nanoseconds(&metadata);
    let remembered = Memory::read(folder, name);
    if remembered.is_some_and(|memory| memory.modified_ns == modified_ns && memory.stored == *expected)
        && modified_ns.is_some()
    {
        return Ok(());
    }
    let found = digest_of_file(&path)?;
    if found != *expected {
        return Err(damaged(&found));
    }
    let memory = Memory {
        stored: found,
        modified_ns,
    };
    // In a folder that cannot be written, the digest is computed each time.
    let _ = memory.write(folder, name);
    Ok(())
}

/// Notes what a file is said to be, where nothing is known of it: one that is there is then held against it.
pub(super) fn expect(folder: &Path, name: &str, stored: &Stored) -> Result<(), ShardError> {
    if Memory::read(folder, name).is_some() {
        return Ok(());
    }
    let memory = Memory {
        stored: stored.clone(),
        modified_ns: None,
    };
    memory.write(folder, name).map_err(ShardError::file(folder))
}

/// Takes a file over that was made elsewhere, unless what is here is whole or being made.
pub(crate) fn take_over(
    folder: &Path,
    name: &str,
    expected: &Stored,
    fetch: &mut dyn FnMut() -> Option<Vec<u8>>,
) -> Result<(), ShardError> {
    let work = folder.join(WORK);
    std::fs::create_dir_all(&work).map_err(ShardError::file(&work))?;
    let Some(_lock) = hold(&work, name)? else { return Ok(()) };
    if standing(folder, name)?.is_some() {
        return Ok(());
    }
    let is_whole = |bytes: &Vec<u8>| {
        bytes.len() as u64 == expected.bytes && hexadecimal(&Sha256::digest(bytes)) == expected.sha256
    };
    match fetch().filter(is_whole) {
        Some(bytes) => publish(folder, name, &bytes),
        None => Ok(()),
    }
}

/// Keeps other processes from a file until the answer is dropped; none where another holds it.
fn hold(work: &Path, name: &str) -> Result<Option<File>, ShardError> {
    let path = work.join(format!("{name}.lock"));
    let lock = File::create(&path).map_err(ShardError::file(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(ShardError::file(&path)(source)),
    }
}

/// As [`hold`], waiting for whoever holds it; `tell` says whether to wait on.
pub(super) fn hold_or_wait(
    folder: &Path,
    name: &str,
    tell: &mut dyn FnMut() -> Result<(), ShardError>,
) -> Result<File, ShardError> {
    let work = folder.join(WORK);
    std::fs::create_dir_all(&work).map_err(ShardError::file(&work))?;
    loop {
        tell()?;
        if let Some(lock) = hold(&work, name)? {
            return Ok(lock);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Size and digest of a file, read block by block.
pub(super) fn digest_of_file(path: &Path) -> Result<Stored, ShardError> {
    let mut digest = Sha256::new();
    let bytes = add_file(path, &mut digest)?;
    Ok(Stored {
        bytes,
        sha256: hexadecimal(&digest.finalize()),
    })
}

/// Adds the bytes of a file to a digest; their number.
pub(super) fn add_file(path: &Path, digest: &mut Sha256) -> Result<u64, ShardError> {
    let mut file = File::open(path).map_err(ShardError::file(path))?;
    let mut block = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut block).map_err(ShardError::file(path))? {
            0 => return Ok(bytes),
            read => {
                digest.update(&block[..read]);
                bytes += read as u64;
            }
        }
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When a file was last changed, where the system says.
pub(super) fn nanoseconds(metadata: &std::fs::Metadata) -> Option<u64> {
    let since = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

#[cfg(test)]
mod tests;
