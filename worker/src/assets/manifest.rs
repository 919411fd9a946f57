//! The manifest beside the files: what they are, how they came about, how good they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AssetsError, MANIFEST, Recipe};
use crate::data::{Prompt, Vocabulary};
use crate::models::tokenizer::Tokenizer;

/// What stands in `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The dataset they were trained for.
    pub dataset: String,
    /// The command that makes them.
    pub command: String,
    /// What identifies the clips.
    pub clips: serde_json::Value,
    /// Sizes and steps.
    pub recipe: Recipe,
    /// Shares that the evaluators get right on clips they were not trained on, by what was asked.
    #[serde(default)]
    pub accuracies: BTreeMap<String, f64>,
    /// Mean absolute error of decoded held-out clips, of 255; not measured of imported parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction_error: Option<f64>,
    /// Names of what can be seen; the evaluators' own, so imported parts have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Vocabulary>,
    /// Captions to tokens.
    pub tokenizer: Tokenizer,
    /// Prompts that were never trained on.
    #[serde(default)]
    pub held_out_prompts: Vec<Prompt>,
    /// The files by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of the assets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// Its digest, in hexadecimal.
    pub sha256: String,
}

impl FileEntry {
    pub(super) fn of(path: &Path) -> Result<Self, AssetsError> {
        let failed = |source| AssetsError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let (mut digest, mut bytes, mut some) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut some).map_err(failed)?;
            if count == 0 {
                break;
            }
            digest.update(&some[..count]);
            bytes += count as u64;
        }
        Ok(Self {
            bytes,
            sha256: hexadecimal(&digest.finalize()),
        })
    }
}

impl Manifest {
    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// Where it is missing or not a manifest.
    pub fn read(folder: &Path) -> Result<Self, AssetsError> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|source| AssetsError::File {
            path: path.clone(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|error| AssetsError::Content {
            path,
            problem: error.to_string(),
        })
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), AssetsError> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(self).map_err(|error| AssetsError::Content {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        std::fs::write(&path, text + "\n").map_err(|source| AssetsError::File { path, source })
    }

    pub(super) fn check_files(&self, folder: &Path) -> Result<(), AssetsError> {
        for (name, expected) in &self.files {
            let path = folder.join(name);
            let found = FileEntry::of(&path)?;
            if found != *expected {
                let (found, expected, dataset) = (found.sha256, expected.sha256.clone(), self.dataset.clone());
                return Err(AssetsError::Checksum {
                    path,
                    found,
                    expected,
                    dataset,
                });
            }
        }
        Ok(())
    }

    /// Names these assets: a digest of clips, recipe and files.
    #[must_use]
    pub fn digest(&self) -> String {
        let parts = serde_json::json!([self.dataset, self.clips, self.recipe, self.files]);
        sha256(parts.to_string().as_bytes())
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A digest of settings, in hexadecimal.
pub(crate) fn digest_of(settings: &impl Serialize) -> String {
    // Settings are plain structs with string keys: they always have a JSON form.
    sha256(serde_json::to_string(settings).unwrap_or_default().as_bytes())
}
