//! What a search knows and never changes: its space, and what is known of an architecture before evaluation.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use lut::{Lut, LutCosts};
use protocol::{ArtifactDigest, SearchId, searches::EliminationView};
use search_spaces::{Architecture, Costs, Estimate, Infeasible, Ranges, Space, SpaceKind, Table};
use sqlx::PgConnection;

use super::{SearchError, tables};
use crate::{
    artifacts::{ArtifactError, ArtifactStore},
    aside::aside,
    samples,
    store::{StoreError, searches, searches::SearchRow},
};

/// The most that each cache holds; when it is full it starts anew.
const CACHED: usize = 64;

/// The most predictions that a search keeps.
const CACHED_COSTS: usize = 100_000;

/// Copies of what never changes, so that each move of a search need not read it again.
#[derive(Default)]
pub struct Caches {
    spaces: Cache<SearchId, Space>,
    contexts: Cache<SearchId, Context>,
    tables: Cache<(String, String), Table>,
}

struct Cache<K, V>(Mutex<HashMap<K, Arc<V>>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Cache<K, V> {
    fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn keep(&self, key: K, value: V) -> Arc<V> {
        let value = Arc::new(value);
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= CACHED {
            map.clear();
        }
        map.insert(key, Arc::clone(&value));
        value
    }
}

impl Caches {
    /// The space of a search, with the search's seed.
    ///
    /// # Errors
    /// When the stored text is no space, which submission does not let through.
    pub async fn space(&self, search: &SearchRow) -> Result<Arc<Space>, StoreError> {
        if let Some(space) = self.spaces.get(&search.id) {
            return Ok(space);
        }
        let text = search.space.clone();
        let space = aside(move || Space::parse(&text)).await;
        let mut space = space.map_err(|error| StoreError::inconsistent("searches", search.id, error))?;
        space.search.seed = search.seed.cast_unsigned();
        Ok(self.spaces.keep(search.id, space))
    }

    /// What a search that is past elimination works with.
    ///
    /// # Errors
    /// When the store or the artifact store fails.
    pub async fn context(
        &self,
        artifacts: &ArtifactStore,
        connection: &mut PgConnection,
        search: &SearchRow,
    ) -> Result<Arc<Context>, SearchError> {
        if let Some(context) = self.contexts.get(&search.id) {
            return Ok(context);
        }
        let space = self.space(search).await?;
        let ranges = search.ranges.clone();
        let ranges = ranges.ok_or_else(|| StoreError::inconsistent("searches", search.id, "it has no ranges"))?;
        let known = match self.table(artifacts, search, &space).await? {
            Some(table) => Known::Table(table),
            None => kept_lut(connection, search).await?.map_or(Known::Nothing, Known::Lut),
        };
        let removed = search
            .elimination
            .as_ref()
            .map(|view| removed(&space, &view.0))
            .unwrap_or_default();
        let context = Context {
            space,
            ranges: Ranges::new(ranges.0),
            known,
            removed,
            predictions: Mutex::default(),
        };
        Ok(self.contexts.keep(search.id, context))
    }

    /// The uploaded table of a table search.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn table(
        &self,
        artifacts: &ArtifactStore,
        search: &SearchRow,
        space: &Space,
    ) -> Result<Option<Arc<Table>>, SearchError> {
        let Some(digest) = &search.table_digest else {
            return Ok(None);
        };
        let digest = digest
            .parse()
            .map_err(|error| StoreError::inconsistent("searches", search.id, error))?;
        self.read_table(artifacts, &digest, space).await
    }

    /// Reads an uploaded table as a space sees it; absent where the space is no table.
    ///
    /// # Errors
    /// When the artifact is not there, or it is no table for the space.
    pub async fn read_table(
        &self,
        artifacts: &ArtifactStore,
        digest: &ArtifactDigest,
        space: &Space,
    ) -> Result<Option<Arc<Table>>, SearchError> {
        if !matches!(space.kind, SpaceKind::Table(_)) {
            return Ok(None);
        }
        let key = (digest.to_string(), samples::digest(space.source.as_bytes()));
        if let Some(table) = self.tables.get(&key) {
            return Ok(Some(table));
        }
        let bytes = artifacts
            .bytes(digest, tables::LARGEST)
            .await
            .map_err(|error| match error {
                ArtifactError::TooLarge { .. } => SearchError::Invalid {
                    field: "table".into(),
                    message: error.to_string(),
                },
                error => error.into(),
            })?;
        let space = space.clone();
        let table = aside(move || tables::read(&bytes, &space)).await?;
        Ok(Some(self.tables.keep(key, table)))
    }
}

async fn kept_lut(connection: &mut PgConnection, search: &SearchRow) -> Result<Option<Lut>, StoreError> {
    let Some(text) = searches::kept_lut(connection, search.id).await? else {
        return Ok(None);
    };
    let entries =
        lut::formats::json::import(&text).map_err(|error| StoreError::inconsistent("search_luts", search.id, error))?;
    Ok(Lut::from_entries(entries).pop())
}

/// Eliminated choices as (position, choice).
fn removed(space: &Space, elimination: &EliminationView) -> BTreeSet<(usize, u16)> {
    let index = |position: &str, choice: &str| {
        let at = space.positions.iter().position(|p| p.name == position)?;
        let choice = space.positions[at].choices.iter().position(|c| c.name == choice)?;
        Some((at, u16::try_from(choice).ok()?))
    };
    elimination
        .removed
        .iter()
        .filter_map(|gone| index(&gone.position, &gone.choice))
        .collect()
}

/// What a search that is past elimination works with.
pub struct Context {
    /// The space, with the search's seed.
    pub space: Arc<Space>,
    /// Box of the hypervolume.
    pub ranges: Ranges,
    known: Known,
    removed: BTreeSet<(usize, u16)>,
    predictions: Mutex<HashMap<Architecture, Prediction>>,
}

type Prediction = Result<BTreeMap<String, Estimate>, Infeasible>;

/// Where figures come from before an evaluation.
enum Known {
    Nothing,
    Lut(Lut),
    Table(Arc<Table>),
}

impl Context {
    /// What is known of an architecture, whether or not its choices were eliminated.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn predict(&self, architecture: &Architecture) -> Prediction {
        match &self.known {
            Known::Nothing => Ok(BTreeMap::new()),
            Known::Table(table) => table.costs(architecture),
            Known::Lut(lut) => LutCosts::new(lut, &self.space).costs(architecture),
        }
    }

    /// The table, where the space is one.
    #[must_use]
    pub fn table(&self) -> Option<&Table> {
        match &self.known {
            Known::Table(table) => Some(table),
            Known::Nothing | Known::Lut(_) => None,
        }
    }
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caches")
    }
}

/// The costs that a strategy asks for: eliminated choices cannot run, and each prediction is made once.
impl Costs for Context {
    fn costs(&self, architecture: &Architecture) -> Prediction {
        let gone = |(position, choice): (usize, &u16)| self.removed.contains(&(position, *choice));
        if architecture.choices().iter().enumerate().any(gone) {
            return Err(Infeasible {
                reason: "a choice of it was eliminated".to_owned(),
            });
        }
        let mut predictions = self.predictions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prediction) = predictions.get(architecture) {
            return prediction.clone();
        }
        if predictions.len() >= CACHED_COSTS {
            predictions.clear();
        }
        let prediction = self.predict(architecture);
        predictions.insert(architecture.clone(), prediction.clone());
        prediction
    }
}
