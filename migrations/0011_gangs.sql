-- Jobs that several workers do together. Their seats come after jobs and attempts in the order of locks.

ALTER TABLE jobs ADD COLUMN ranks integer NOT NULL DEFAULT 1 CHECK (ranks BETWEEN 1 AND 1024);
ALTER TABLE jobs ALTER COLUMN ranks DROP DEFAULT;
COMMENT ON COLUMN jobs.ranks IS 'Workers that do it together; the lease is that of rank 0.';
CREATE INDEX jobs_of_gangs ON jobs (id) WHERE ranks > 1 AND state IN ('queued', 'leased');

CREATE TABLE seats (
    job_id          uuid NOT NULL REFERENCES jobs,
    attempt         integer NOT NULL CHECK (attempt > 0),
    rank            integer NOT NULL CHECK (rank >= 0),
    worker_id       uuid NOT NULL REFERENCES workers,
    token           uuid NOT NULL UNIQUE,
    address         text,
    taken_at        timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    done_at         timestamptz,
    train_seconds   double precision NOT NULL DEFAULT 0 CHECK (train_seconds >= 0),
    sample_seconds  double precision NOT NULL DEFAULT 0 CHECK (sample_seconds >= 0),
    score_seconds   double precision NOT NULL DEFAULT 0 CHECK (score_seconds >= 0),
    profile_seconds double precision NOT NULL DEFAULT 0 CHECK (profile_seconds >= 0),
    PRIMARY KEY (job_id, attempt, rank),
    UNIQUE (job_id, attempt, worker_id)
);
COMMENT ON TABLE seats IS
    'Who does a job of several ranks. Those of the attempt after a queued job''s last one wait for the rest; those of a leased job''s last attempt do it; all others are history.';
COMMENT ON COLUMN seats.address IS 'Where rank 0''s store listens; NULL: another rank, or not said yet.';
COMMENT ON COLUMN seats.done_at IS 'NULL: it has not done its share.';
CREATE INDEX seats_by_expiry ON seats (expires_at) WHERE done_at IS NULL;

CREATE FUNCTION worker_takes(w workers, j jobs) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT j.kind = ANY (w.kinds) AND j.memory_bytes <= w.memory_bytes AND (j.device IS NULL OR j.device = w.device)
        AND (j.runtime_name IS NULL OR (j.runtime_name, j.runtime_version) = (w.runtime_name, w.runtime_version))
        AND (j.evaluator IS NULL OR j.evaluator = ANY (w.evaluators))
$$;
COMMENT ON FUNCTION worker_takes IS 'Whether a job is one that a worker can do.';
