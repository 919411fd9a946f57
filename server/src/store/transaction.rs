//! A transaction that tells what it does: events become visible with the change they tell of, in order.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use protocol::{SearchId, events::EventBody};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::{event_hub::Topic, store::StoreError};

/// A transaction with the events that its commit appends and the wake-ups that it sends.
pub struct Tx {
    inner: Transaction<'static, Postgres>,
    told: BTreeMap<SearchId, Told>,
    jobs_changed: bool,
    news: bool,
}

#[derive(Default)]
struct Told {
    events: Vec<EventBody>,
    served: bool,
}

impl Tx {
    pub(super) fn new(inner: Transaction<'static, Postgres>) -> Self {
        Self {
            inner,
            told: BTreeMap::new(),
            jobs_changed: false,
            news: false,
        }
    }

    /// The connection, for statements of this transaction.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    /// Appends an event to the search's stream at commit; what belongs to no search has no stream, and only wakes
    /// whoever follows a deployment.
    pub fn tell(&mut self, search: impl Into<Option<SearchId>>, event: EventBody) {
        match search.into() {
            Some(search) => self.told.entry(search).or_default().events.push(event),
            None => self.news = true,
        }
    }

    /// Wakes whoever follows a deployment.
    pub fn wake_followers(&mut self) {
        self.news = true;
    }

    /// Notes at commit that a worker took a job of the search, for fairness.
    pub fn note_served(&mut self, search: impl Into<Option<SearchId>>) {
        if let Some(search) = search.into() {
            self.told.entry(search).or_default().served = true;
        }
    }

    /// Wakes waiting workers at commit: a job or a device became free.
    pub fn wake_workers(&mut self) {
        self.jobs_changed = true;
    }

    /// Makes everything visible at once.
    ///
    /// The streams' rows are locked here, after all else and in order of their ids, and until the commit:
    /// whoever sees an event sees all with smaller numbers, and no two transactions wait for each other.
    ///
    /// # Errors
    /// When Postgres is away; nothing happened then.
    pub async fn commit(mut self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let told = std::mem::take(&mut self.told);
        let any_events = self.news || told.values().any(|told| !told.events.is_empty());
        for (search, Told { events, served }) in told {
            self.append(search, &events, served, now).await?;
        }
        if any_events {
            self.notify(Topic::Events).await?;
        }
        if self.jobs_changed {
            self.notify(Topic::Jobs).await?;
        }
        self.inner.commit().await?;
        Ok(())
    }

    async fn append(
        &mut self,
        search: SearchId,
        events: &[EventBody],
        served: bool,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let last = sqlx::query_scalar!(
            "UPDATE search_streams
             SET last_sequence = last_sequence + $2, last_served_at = CASE WHEN $3 THEN $4 ELSE last_served_at END
             WHERE search_id = $1 RETURNING last_sequence",
            search.0,
            count,
            served,
            now,
        )
        .fetch_one(&mut *self.inner)
        .await?;
        let bodies = events.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>();
        let bodies = bodies.map_err(|error| StoreError::inconsistent("events", search, error))?;
        sqlx::query!(
            "INSERT INTO events (search_id, sequence, at, body)
             SELECT $1, $2 + ordinal, $3, body FROM unnest($4::jsonb[]) WITH ORDINALITY AS new (body, ordinal)",
            search.0,
            last - count,
            now,
            &bodies,
        )
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    async fn notify(&mut self, topic: Topic) -> Result<(), StoreError> {
        sqlx::query!("SELECT pg_notify($1, '')", topic.channel())
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(())
    }
}
