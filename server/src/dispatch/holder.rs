//! Who stands behind a token.

use protocol::{LeaseToken, jobs::JobState};

use super::DispatchError;
use crate::store::{
    Tx,
    jobs::JobRow,
    seats::{self, SeatRow},
};

/// The holder of a token that still counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder {
    /// The one worker that does the job.
    Alone,
    /// Rank 0 of a gang at work, which reports for all.
    First(SeatRow),
    /// Another rank of a gang at work.
    Other(SeatRow),
    /// A rank of a gang that is not complete yet.
    Waits(SeatRow),
    /// Any of them, once the job is not wanted any more.
    Cancelled,
}

impl Holder {
    /// Who holds a job, which the transaction has locked, under a token.
    ///
    /// # Errors
    /// [`DispatchError::LeaseLost`] where nobody does any more; or the store fails.
    pub(super) async fn of(tx: &mut Tx, job: &JobRow, token: LeaseToken) -> Result<Self, DispatchError> {
        let seat = match job.ranks {
            1 => None,
            _ => Some(seats::find(tx, job.id, token).await?),
        };
        let holder = match (job.state, seat) {
            (JobState::Leased, None) if job.lease_token == Some(token) => Some(Self::Alone),
            (JobState::Cancelled, None) if job.lease_token == Some(token) => Some(Self::Cancelled),
            (JobState::Leased, Some(Some(seat))) if seat.attempt == job.handovers => Some(match seat.rank {
                0 => Self::First(seat),
                _ => Self::Other(seat),
            }),
            (JobState::Queued, Some(Some(seat))) if seat.attempt > job.handovers => Some(Self::Waits(seat)),
            (JobState::Cancelled, Some(Some(seat))) if seat.attempt >= job.handovers => Some(Self::Cancelled),
            _ => None,
        };
        holder.ok_or(lost(job))
    }

    /// The seat of one among several.
    pub(super) const fn seat(&self) -> Option<&SeatRow> {
        match self {
            Self::First(seat) | Self::Other(seat) | Self::Waits(seat) => Some(seat),
            Self::Alone | Self::Cancelled => None,
        }
    }

    /// Whether it tells progress, checkpoint and result.
    pub(super) const fn reports(&self) -> bool {
        matches!(self, Self::Alone | Self::First(_))
    }

    /// Why what it sent is not taken from it.
    pub(super) fn refusal(&self, job: &JobRow) -> DispatchError {
        let why = match self {
            Self::Other(_) => "another rank reports for all",
            Self::Waits(_) => "the gang is not complete yet",
            Self::Alone | Self::First(_) | Self::Cancelled => return lost(job),
        };
        DispatchError::LeaseLost { job: job.id, why }
    }
}

fn lost(job: &JobRow) -> DispatchError {
    let why = match job.state {
        JobState::Leased if job.ranks > 1 => "another gang has the job",
        JobState::Leased => "another worker has the job",
        JobState::Queued if job.ranks > 1 => {
            "its gang has broken up or did not gather in time; the job waits for another"
        }
        JobState::Queued => "the job waits for another worker",
        JobState::Succeeded => "the job has been done",
        JobState::Failed => "the job was given up",
        JobState::Cancelled => "the job was cancelled",
    };
    DispatchError::LeaseLost { job: job.id, why }
}
