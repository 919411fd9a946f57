//! Submitting a search.

use std::{borrow::Cow, collections::BTreeSet, path::Path, sync::Arc};

use chrono::{DateTime, Utc};
use protocol::{FieldProblem, SearchId, devices::RuntimeName, searches::NewSearch};
use search_spaces::{Space, SpaceError, SpaceKind};

use super::{SearchError, advance};
use crate::{
    app::App,
    aside::aside,
    dispatch::Rules,
    samples,
    store::{
        Tx,
        searches::{self, NewSearchRow},
    },
};

/// The longest idempotency key and name, in characters.
const LONGEST_NAME: usize = 200;

/// The most files that evaluations may start from.
const MOST_BASE_FILES: usize = 1024;

/// The search that a submission made, now or the first time it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// The search.
    pub id: SearchId,
    /// Whether it was made now.
    pub fresh: bool,
}

/// A submission that was found right.
pub(super) struct Accepted {
    pub space: Space,
    pub device: Option<String>,
    pub runtime: Option<RuntimeName>,
}

/// Checks a submission, stores the search and starts it. With a key a repeated submission changes nothing.
///
/// # Errors
/// What is wrong with the submission, by field; or a store fails.
pub async fn submit(app: &Arc<App>, new: &NewSearch, key: Option<&str>) -> Result<Submitted, SearchError> {
    if key.is_some_and(|key| key.is_empty() || key.chars().count() > LONGEST_NAME) {
        return Err(invalid(
            "Idempotency-Key",
            format!("must have 1 to {LONGEST_NAME} characters"),
        ));
    }
    let now = app.clock.now();
    let digest = samples::digest(&serde_json::to_vec(new).unwrap_or_default());
    // What was accepted once stays accepted, whatever has become of devices and runtimes since.
    if let Some(standing) = earlier(&mut app.store.begin().await?, key, &digest).await? {
        return Ok(standing);
    }
    let accepted = check(app, new, now).await?;
    let mut tx = app.store.begin().await?;
    // Another one may have come in the meantime; from here on it would wait.
    if let Some(standing) = earlier(&mut tx, key, &digest).await? {
        return Ok(standing);
    }
    let Accepted { space, device, runtime } = accepted;
    let id = SearchId::new();
    let row = NewSearchRow {
        id,
        name: name_of(new, &space),
        space_name: &space.name,
        space: &new.space,
        device: device.as_deref(),
        runtime: runtime.as_ref(),
        table: new.table.as_ref().filter(|_| matches!(space.kind, SpaceKind::Table(_))),
        strategy: space.search.strategy.as_str(),
        seed: space.search.seed,
        priority: new.priority,
        max_evaluations: space.search.max_evaluations,
        base: &new.base,
    };
    searches::insert(&mut tx, &row, now).await?;
    if let Some(key) = key {
        searches::remember_submission(&mut tx, key, &digest, id, now).await?;
    }
    tx.commit(now).await?;
    // The search is stored: should this fail, the next sweep starts it.
    if let Err(error) = advance(app, id).await {
        tracing::error!(search.id = %id, error = &error as &dyn std::error::Error, "a new search could not be started yet");
    }
    Ok(Submitted { id, fresh: true })
}

/// The search that the same submission has made already; a key of another one is refused.
async fn earlier(tx: &mut Tx, key: Option<&str>, digest: &str) -> Result<Option<Submitted>, SearchError> {
    let Some(key) = key else { return Ok(None) };
    match searches::submission(tx, key).await? {
        Some((standing, id)) if standing == digest => Ok(Some(Submitted { id, fresh: false })),
        Some(_) => Err(SearchError::KeyReused(key.to_owned())),
        None => Ok(None),
    }
}

/// What the search is called: as asked for, else by the space's title, else by its name.
fn name_of<'a>(new: &'a NewSearch, space: &'a Space) -> &'a str {
    let given = [new.name.as_deref().unwrap_or_default(), &space.title];
    given.into_iter().find(|name| !name.is_empty()).unwrap_or(&space.name)
}

/// Checks a submission against what is stored.
pub(super) async fn check(app: &App, new: &NewSearch, now: DateTime<Utc>) -> Result<Accepted, SearchError> {
    let mut space = read_space(&new.space).await?;
    if let Some(seed) = new.seed {
        space.search.seed = seed;
    }
    if new
        .name
        .as_ref()
        .is_some_and(|name| name.is_empty() || name.chars().count() > LONGEST_NAME)
    {
        return Err(invalid("name", format!("must have 1 to {LONGEST_NAME} characters")));
    }
    check_table(app, new, &space).await?;
    check_base(app, new, &space).await?;
    if new.runtime.is_some() && new.device.is_none() {
        return Err(invalid(
            "runtime",
            "stands without a device; name the device that it runs on, or neither".to_owned(),
        ));
    }
    let device = device(app, new, &space).await?;
    let runtime = match &device {
        Some(device) => Some(runtime(app, new, &space, device, now).await?).flatten(),
        None => None,
    };
    Ok(Accepted { space, device, runtime })
}

/// Reads a space file.
///
/// # Errors
/// [`SearchError::Space`], with all that is wrong.
pub async fn read_space(text: &str) -> Result<Space, SearchError> {
    let text = text.to_owned();
    aside(move || parse_space(&text)).await
}

/// As [`read_space`], on this thread: for the short spaces that ship.
///
/// # Errors
/// [`SearchError::Space`], with all that is wrong.
pub fn parse_space(text: &str) -> Result<Space, SearchError> {
    Space::parse(text).map_err(|error| SearchError::Space(space_problems(&error)))
}

async fn check_table(app: &App, new: &NewSearch, space: &Space) -> Result<(), SearchError> {
    match (&space.kind, &new.table) {
        (SpaceKind::Table(_), Some(digest)) => {
            if app.store.artifact(digest).await?.is_none() {
                return Err(invalid(
                    "table",
                    format!("there is no artifact {digest}; upload the table first"),
                ));
            }
            app.searches.read_table(&app.artifacts, digest, space).await?;
            Ok(())
        }
        (SpaceKind::Table(_), None) => Err(invalid(
            "table",
            "a table space needs the digest of its uploaded table".to_owned(),
        )),
        (_, Some(_)) => Err(invalid(
            "table",
            format!("a {} space takes no table", space.kind.as_str()),
        )),
        (_, None) => Ok(()),
    }
}

/// The files must be there, and fit side by side into one folder.
async fn check_base(app: &App, new: &NewSearch, space: &Space) -> Result<(), SearchError> {
    if !new.base.is_empty() && matches!(space.kind, SpaceKind::Table(_)) {
        return Err(invalid(
            "base",
            "a table space is looked up and takes no base".to_owned(),
        ));
    }
    if new.base.len() > MOST_BASE_FILES {
        return Err(invalid(
            "base",
            format!(
                "there are {} files; at most {MOST_BASE_FILES} are allowed",
                new.base.len()
            ),
        ));
    }
    let mut names = BTreeSet::new();
    for (index, file) in new.base.iter().enumerate() {
        let field = |name: &str| format!("base[{index}].{name}");
        if !is_plain_name(&file.name) {
            let found = short(&file.name);
            let message = format!("`{found}` is no plain file name of at most {LONGEST_NAME} characters");
            return Err(invalid(field("name"), message));
        }
        if !names.insert(&file.name) {
            let message = format!("`{}` stands twice; each file needs a name of its own", file.name);
            return Err(invalid(field("name"), message));
        }
        let Some(stored) = app.store.artifact(&file.digest).await? else {
            let message = format!("there is no artifact {}; upload it first", file.digest);
            return Err(invalid(field("digest"), message));
        };
        if stored.bytes != file.bytes {
            let message = format!("is {}, the artifact has {} bytes", file.bytes, stored.bytes);
            return Err(invalid(field("bytes"), message));
        }
    }
    Ok(())
}

/// Whether a name stands for a file in a folder, and never for one elsewhere.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let is_file = Path::new(name).file_name().is_some_and(|file| file == name);
    is_file && name.chars().count() <= LONGEST_NAME && !name.contains(['\\', '\0'])
}

async fn device(app: &App, new: &NewSearch, space: &Space) -> Result<Option<String>, SearchError> {
    let Some(name) = &new.device else {
        return if space.blocks().is_empty() {
            Ok(None)
        } else {
            Err(invalid(
                "device",
                format!(
                    "a {} space with blocks needs one; there are {}",
                    space.kind.as_str(),
                    devices(app).await?
                ),
            ))
        };
    };
    match app.store.device(name).await? {
        Some(_) => Ok(Some(name.clone())),
        None => Err(invalid(
            "device",
            format!("`{}` is not registered; there are {}", short(name), devices(app).await?),
        )),
    }
}

async fn devices(app: &App) -> Result<String, SearchError> {
    let devices = app.store.devices(None, None, 20).await?;
    let names: Vec<String> = devices.into_iter().map(|view| view.device.name).collect();
    Ok(if names.is_empty() {
        "none yet: start a worker on one, or register it".to_owned()
    } else {
        names.join(", ")
    })
}

/// The runtime asked for, or the only one the device has; none where the space has nothing to measure.
async fn runtime(
    app: &App,
    new: &NewSearch,
    space: &Space,
    device: &str,
    now: DateTime<Utc>,
) -> Result<Option<RuntimeName>, SearchError> {
    if new.runtime.is_some() || space.blocks().is_empty() {
        return Ok(new.runtime.clone());
    }
    only_runtime(app, device, now).await.map(Some)
}

/// The only runtime that a device has.
pub(super) async fn only_runtime(app: &App, device: &str, now: DateTime<Utc>) -> Result<RuntimeName, SearchError> {
    let alive_since = Rules::of(&app.config).alive_since(now);
    let mut runtimes = app.store.runtimes(device, alive_since).await?;
    match (runtimes.pop(), runtimes.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(invalid(
            "runtime",
            format!("{device} has none yet: start a worker on it, or name the one to wait for"),
        )),
        (Some(last), false) => {
            runtimes.push(last);
            let names = runtimes
                .iter()
                .map(|runtime| format!("{} {}", runtime.name, runtime.version));
            Err(invalid(
                "runtime",
                format!(
                    "{device} has several, name one: {}",
                    names.collect::<Vec<_>>().join(", ")
                ),
            ))
        }
    }
}

/// What is wrong with a space file, as the wire tells it.
fn space_problems(error: &SpaceError) -> Vec<FieldProblem> {
    let number = |number: usize| u32::try_from(number).ok();
    let problems = error.0.iter().map(|problem| FieldProblem {
        field: if problem.field.is_empty() {
            "(whole file)".to_owned()
        } else {
            problem.field.clone()
        },
        line: number(problem.line),
        column: number(problem.column),
        message: format!("found {}; allowed: {}", problem.found, problem.allowed),
    });
    problems.collect()
}

pub(super) fn invalid(field: impl Into<Cow<'static, str>>, message: String) -> SearchError {
    SearchError::Invalid {
        field: field.into(),
        message,
    }
}

pub(crate) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
