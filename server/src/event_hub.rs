//! Wake-ups: Postgres' `NOTIFY`, spread to the long polls and event streams of this process.
//!
//! A wake-up says only "look again". What there is to see stands in the tables, so a lost or a
//! spurious one costs a look, never an event.

use std::{sync::Arc, time::Duration};

use sqlx::{PgPool, postgres::PgListener};
use tokio::{sync::watch, task::JoinHandle};

/// What happened somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A job became runnable.
    Jobs,
    /// An event was appended.
    Events,
}

impl Topic {
    /// The channel of `LISTEN` and `NOTIFY`.
    #[must_use]
    pub const fn channel(self) -> &'static str {
        match self {
            Self::Jobs => "temponas_jobs",
            Self::Events => "temponas_events",
        }
    }
}

/// Hears Postgres' notifications for this process.
#[derive(Debug, Clone)]
pub struct EventHub {
    jobs: watch::Sender<u64>,
    events: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    #[expect(dead_code, reason = "dropped, not read")]
    listener: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl EventHub {
    /// Starts listening on a connection of its own, and again whenever that is lost.
    #[must_use]
    pub fn start(pool: PgPool) -> Self {
        let jobs = watch::Sender::new(0);
        let events = watch::Sender::new(0);
        let listener = tokio::spawn(listen_forever(pool, jobs.clone(), events.clone()));
        let stopping = watch::Sender::new(false);
        Self {
            jobs,
            events,
            stopping,
            listener: Arc::new(AbortOnDrop(listener)),
        }
    }

    /// Wake-ups from now on: `changed().await` returns at the next one, at once if one came since the
    /// last look. Subscribe first, look at the tables second, wait third, and nothing is missed.
    #[must_use]
    pub fn subscribe(&self, topic: Topic) -> watch::Receiver<u64> {
        self.sender(topic).subscribe()
    }

    /// Wakes this process without Postgres, for changes that it made itself.
    pub fn wake(&self, topic: Topic) {
        bump(self.sender(topic));
    }

    /// Tells everyone who waits that the coordinator is about to end.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until the coordinator is about to end.
    pub async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender lives as long as `self`.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    fn sender(&self, topic: Topic) -> &watch::Sender<u64> {
        match topic {
            Topic::Jobs => &self.jobs,
            Topic::Events => &self.events,
        }
    }
}

fn bump(sender: &watch::Sender<u64>) {
    sender.send_modify(|count| *count = count.wrapping_add(1));
}

async fn listen_forever(pool: PgPool, jobs: watch::Sender<u64>, events: watch::Sender<u64>) {
    loop {
        let outcome = listen(&pool, &jobs, &events).await;
        if pool.is_closed() {
            return;
        }
        if let Err(error) = outcome {
            tracing::warn!(%error, "lost the connection that hears notifications; trying again");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Listens until the connection is lost.
async fn listen(pool: &PgPool, jobs: &watch::Sender<u64>, events: &watch::Sender<u64>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener
        .listen_all([Topic::Jobs.channel(), Topic::Events.channel()])
        .await?;
    // What was notified while nobody listened is lost: everyone looks once.
    bump(jobs);
    bump(events);
    while let Some(notification) = listener.try_recv().await? {
        if notification.channel() == Topic::Jobs.channel() {
            bump(jobs);
        } else {
            bump(events);
        }
    }
    Ok(())
}
