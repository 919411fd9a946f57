//! The files that evaluations start from: found on this machine, sent to the coordinator unless they are there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;
use protocol::{
    ArtifactDigest,
    artifacts::{ArtifactRef, ArtifactRole},
};
use search_spaces::Space;
use serde::Deserialize;

use crate::client::Client;

/// Says what the trained parts of a dataset are.
const MANIFEST: &str = "manifest.json";

/// The training clips as latents: with this file a worker needs no clips.
const LATENTS: &str = "latents.safetensors";

/// As [`LATENTS`], in shards that this file names.
const INDEX: &str = "index.json";

#[derive(Debug, Args)]
pub(super) struct BaseArgs {
    /// Folder of trained parts, with a folder for each dataset; those of the space's dataset are uploaded unless they
    /// are there [default: `assets` here or above this program, where there is one]
    #[arg(long, env = "TEMPONAS_ASSETS", value_name = "FOLDER")]
    assets: Option<PathBuf>,
}

impl BaseArgs {
    /// Where the trained parts of a space's dataset are; none where the space trains nothing, or none was named and
    /// none is found.
    ///
    /// # Errors
    /// When the folder that was named does not hold them.
    pub(super) fn folder(&self, space: &str) -> anyhow::Result<Option<PathBuf>> {
        // What is wrong with a space is the coordinator's to say.
        match Space::parse(space).ok().and_then(|space| space.evaluation) {
            Some(evaluation) => self.named(&evaluation.dataset),
            None => Ok(None),
        }
    }

    /// Where the trained parts of a name are; none where no folder was named and none is found.
    ///
    /// # Errors
    /// When the folder that was named does not hold them.
    pub(super) fn named(&self, parts: &str) -> anyhow::Result<Option<PathBuf>> {
        if let Some(root) = &self.assets {
            let folder = root.join(parts);
            ensure!(
                folder.join(MANIFEST).is_file(),
                "{} is missing (--assets): it says what the parts `{parts}` are",
                folder.join(MANIFEST).display(),
            );
            return Ok(Some(folder));
        }
        let program = std::env::current_exe().unwrap_or_default();
        let above = program.ancestors().skip(1).map(|folder| folder.join("assets"));
        let mut folders = std::iter::once(PathBuf::from("assets"))
            .chain(above)
            .map(|root| root.join(parts));
        Ok(folders.find(|folder| folder.join(MANIFEST).is_file()))
    }
}

/// What a manifest says of the files beside it.
#[derive(Deserialize)]
struct Manifest {
    files: BTreeMap<String, File>,
}

#[derive(Deserialize)]
struct File {
    sha256: ArtifactDigest,
}

/// What an index says of the shards beside it.
#[derive(Deserialize)]
struct Index {
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    file: String,
    stored: File,
}

/// Uploads the trained parts in a folder, where there is one.
///
/// # Errors
/// As [`upload`].
pub(super) async fn upload_found(client: &Client, folder: Option<PathBuf>) -> anyhow::Result<Vec<ArtifactRef>> {
    match folder {
        Some(folder) => upload(client, &folder).await,
        None => Ok(Vec::new()),
    }
}

/// Uploads the trained parts in a folder, and the latents where they lie beside them; what is there already is not
/// sent again.
///
/// # Errors
/// When a file is missing or is not the one that the manifest names, or the coordinator refuses it.
pub(super) async fn upload(client: &Client, folder: &Path) -> anyhow::Result<Vec<ArtifactRef>> {
    let path = folder.join(MANIFEST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        serde_json::from_str(&text).with_context(|| format!("{} is no manifest of trained parts", path.display()))?;
    let mut base = vec![upload_file(client, folder, MANIFEST).await?];
    for (name, expected) in &manifest.files {
        let file = upload_file(client, folder, name).await?;
        ensure!(
            file.digest == expected.sha256,
            "{} has SHA-256 {}, its manifest says {}",
            folder.join(name).display(),
            file.digest,
            expected.sha256
        );
        base.push(file);
    }
    if folder.join(INDEX).is_file() {
        base.extend(upload_shards(client, folder).await?);
    } else if folder.join(LATENTS).is_file() {
        base.push(upload_file(client, folder, LATENTS).await?);
    }
    Ok(base)
}

async fn upload_shards(client: &Client, folder: &Path) -> anyhow::Result<Vec<ArtifactRef>> {
    let path = folder.join(INDEX);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let index: Index =
        serde_json::from_str(&text).with_context(|| format!("{} is no index of whole shards", path.display()))?;
    let mut base = vec![upload_file(client, folder, INDEX).await?];
    for Shard { file: name, stored } in &index.shards {
        let file = upload_file(client, folder, name).await?;
        ensure!(
            file.digest == stored.sha256,
            "{} has SHA-256 {}, its index says {}; encode the clips again, which mends it",
            folder.join(name).display(),
            file.digest,
            stored.sha256
        );
        base.push(file);
    }
    Ok(base)
}

/// Uploads a file that is named by itself.
///
/// # Errors
/// When it cannot be read, or the coordinator refuses it.
pub(super) async fn upload_one(client: &Client, path: &Path, role: ArtifactRole) -> anyhow::Result<ArtifactRef> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} names no file", path.display()))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let file = upload_file(client, folder, name).await?;
    Ok(ArtifactRef { role, ..file })
}

async fn upload_file(client: &Client, folder: &Path, name: &str) -> anyhow::Result<ArtifactRef> {
    let path = folder.join(name);
    let media_type = if [MANIFEST, INDEX].contains(&name) {
        "application/json"
    } else {
        "application/octet-stream"
    };
    let digest = client.upload(&path, media_type).await?;
    let bytes = std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(ArtifactRef {
        role: ArtifactRole::Base,
        digest,
        name: name.to_owned(),
        media_type: media_type.to_owned(),
        bytes: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: &str = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");

    #[test]
    fn parts_are_those_of_the_spaces_dataset() {
        let root = tempfile::tempdir().unwrap();
        let args = BaseArgs {
            assets: Some(root.path().to_owned()),
        };
        let missing = args.folder(SPACE).unwrap_err().to_string();
        assert!(missing.contains("shapes/manifest.json is missing"), "{missing}");
        std::fs::create_dir(root.path().join("shapes")).unwrap();
        std::fs::write(root.path().join("shapes").join(MANIFEST), "{}").unwrap();
        assert_eq!(args.folder(SPACE).unwrap(), Some(root.path().join("shapes")));
        assert_eq!(args.folder("no space").unwrap(), None);
    }

    #[test]
    fn without_a_name_the_folder_above_the_program_is_found() {
        let found = BaseArgs { assets: None }.folder(SPACE).unwrap();
        assert!(found.is_some_and(|folder| folder.ends_with("assets/shapes")));
    }
}
