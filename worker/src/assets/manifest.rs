//! The manifest beside the files: what they are, how they came about, how good they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AssetsError, BACKBONE, CLIP, EVALUATORS, MANIFEST, Recipe, TEXT, VAE};
use crate::checkpoint::write_through;
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
    /// Where it is missing or not a manifest, or its parts cannot be built.
    pub fn read(folder: &Path) -> Result<Self, AssetsError> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(|source| AssetsError::File {
            path: path.clone(),
            source,
        })?;
        let wrong = |problem: String| AssetsError::Content {
            path: path.clone(),
            problem,
        };
        let manifest: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        manifest
            .recipe
            .check()
            .map_err(|problem| wrong(format!("`recipe`: {problem}")))?;
        // A file that is not named would be read unchecked.
        let evaluators = manifest.recipe.evaluators.map(|_| EVALUATORS);
        let clip = manifest.recipe.clip.map(|_| CLIP);
        let mut needed = [VAE, TEXT, BACKBONE].into_iter().chain(evaluators).chain(clip);
        match needed.find(|name| !manifest.files.contains_key(*name)) {
            None => Ok(manifest),
            Some(name) => Err(wrong(format!("`files` has no `{name}`, which the recipe asks for"))),
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), AssetsError> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(self).map_err(|error| AssetsError::Content {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        let written = write_through(&path.with_extension("partial"), &path, (text + "\n").as_bytes());
        written.map_err(|source| AssetsError::File { path, source })
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_manifest_of_parts_that_cannot_be_is_refused_with_the_field() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/shapes");
        let shipped: Value = serde_json::to_value(Manifest::read(&shipped).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (pointer, value, said) in [
            ("/recipe/text/tokens", json!(0), "`recipe`: text.tokens is 0"),
            (
                "/recipe/text/width",
                json!(64),
                "unet.text_width and text.width are 32 and 64",
            ),
            (
                "/recipe/vae/spatial/norm_groups",
                json!(0),
                "vae.spatial.norm_groups is 0",
            ),
            (
                "/recipe/evaluators/width",
                json!(12),
                "evaluators.width is 12; allowed are multiples of 8 to 65536",
            ),
            ("/recipe/evaluators/embedding", json!(-1), "evaluators.embedding is -1"),
            ("/files", json!({}), "`files` has no `vae.safetensors`"),
        ] {
            let mut changed = shipped.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            std::fs::write(folder.path().join(MANIFEST), changed.to_string()).unwrap();
            let error = Manifest::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains("manifest.json: ") && error.contains(said), "{error}");
        }
        let mut unread = shipped;
        unread["files"].as_object_mut().unwrap().remove(EVALUATORS);
        std::fs::write(folder.path().join(MANIFEST), unread.to_string()).unwrap();
        let error = Manifest::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("`files` has no `evaluators.safetensors`"), "{error}");
    }
}
