-- Devices, tables, searches, candidates, jobs and events.
-- Transactions that lock several rows lock them in one order, so that none waits in a circle:
-- device (advisory), search, jobs, attempts, candidates, and last of all the search's stream.

CREATE TYPE search_state AS ENUM
    ('profiling', 'eliminating', 'searching', 'verifying', 'done', 'paused', 'cancelled', 'failed');
CREATE TYPE candidate_state AS ENUM ('proposed', 'evaluating', 'evaluated', 'infeasible', 'failed');
CREATE TYPE job_kind AS ENUM ('profile', 'evaluate', 'verify', 'lookup');
CREATE TYPE job_state AS ENUM ('queued', 'leased', 'succeeded', 'failed', 'cancelled');
CREATE TYPE entry_state AS ENUM ('measured', 'out_of_memory', 'unsupported');

CREATE TABLE devices (
    name         text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    description  text NOT NULL,
    memory_bytes bigint CHECK (memory_bytes > 0),
    created_at   timestamptz NOT NULL,
    last_seen    timestamptz
);
COMMENT ON TABLE devices IS 'What models run on and what tables are about.';
COMMENT ON COLUMN devices.memory_bytes IS 'NULL: not known, no limit assumed.';
COMMENT ON COLUMN devices.last_seen IS 'NULL: no worker on it was ever heard of.';

CREATE TABLE workers (
    id              uuid PRIMARY KEY,
    name            text NOT NULL,
    device          text NOT NULL REFERENCES devices,
    runtime_name    text,
    runtime_version text,
    kinds           job_kind[] NOT NULL,
    memory_bytes    bigint NOT NULL CHECK (memory_bytes >= 0),
    registered_at   timestamptz NOT NULL,
    last_seen       timestamptz NOT NULL,
    CHECK ((runtime_name IS NULL) = (runtime_version IS NULL))
);
COMMENT ON TABLE workers IS 'Worker processes; a restarted one is a new one.';
COMMENT ON COLUMN workers.runtime_name IS 'NULL: it does not measure.';
COMMENT ON COLUMN workers.runtime_version IS 'NULL: it does not measure.';
CREATE INDEX workers_by_device ON workers (device, last_seen);

CREATE TABLE lut_batches (
    id              uuid PRIMARY KEY,
    device          text NOT NULL REFERENCES devices,
    runtime_name    text NOT NULL,
    runtime_version text NOT NULL,
    digest          text NOT NULL,
    received_at     timestamptz NOT NULL
);
COMMENT ON TABLE lut_batches IS 'Uploads of samples; one that is sent again is recognised by its id and digest.';

CREATE TABLE lut_entries (
    id                bigserial PRIMARY KEY,
    batch_id          uuid NOT NULL REFERENCES lut_batches,
    device            text NOT NULL REFERENCES devices,
    runtime_name      text NOT NULL,
    runtime_version   text NOT NULL,
    dtype             text NOT NULL,
    operator          text NOT NULL,
    shape             text NOT NULL,
    state             entry_state NOT NULL,
    detail            text,
    latency_ms        double precision[] NOT NULL,
    peak_memory_bytes double precision[] NOT NULL,
    CHECK ((state = 'measured') = (detail IS NULL)),
    CHECK ((state = 'measured') = (cardinality(latency_ms) > 0)),
    CHECK (state = 'measured' OR cardinality(peak_memory_bytes) = 0)
);
COMMENT ON TABLE lut_entries IS
    'Raw results as they came, never changed; those of one key (device, runtime, dtype, operator, shape) are merged on reading.';
COMMENT ON COLUMN lut_entries.detail IS 'NULL: it was measured. Else what the runtime said.';
CREATE INDEX lut_entries_by_key ON lut_entries (device, runtime_name, runtime_version, dtype, operator, shape, id);

CREATE TABLE searches (
    id               uuid PRIMARY KEY,
    name             text NOT NULL,
    space_name       text NOT NULL,
    space            text NOT NULL,
    device           text REFERENCES devices,
    runtime_name     text,
    runtime_version  text,
    table_digest     text,
    strategy         text NOT NULL,
    seed             bigint NOT NULL,
    priority         integer NOT NULL,
    max_evaluations  bigint NOT NULL,
    state            search_state NOT NULL,
    paused_from      search_state,
    state_reason     text,
    elimination      jsonb,
    ranges           jsonb,
    calibration      jsonb,
    created_at       timestamptz NOT NULL,
    ended_at         timestamptz,
    CHECK ((runtime_name IS NULL) = (runtime_version IS NULL)),
    CHECK (runtime_name IS NULL OR device IS NOT NULL),
    CHECK ((state = 'paused') = (paused_from IS NOT NULL)),
    CHECK (paused_from IS NULL OR paused_from IN ('profiling', 'eliminating', 'searching', 'verifying')),
    CHECK ((state IN ('done', 'cancelled', 'failed')) = (ended_at IS NOT NULL)),
    CHECK (state <> 'failed' OR state_reason IS NOT NULL),
    CHECK (state NOT IN ('searching', 'verifying', 'done') OR ranges IS NOT NULL)
);
COMMENT ON TABLE searches IS 'A space, a strategy, a device and a budget; space and seed never change.';
COMMENT ON COLUMN searches.device IS 'NULL: the costs come from the table or from whoever evaluates.';
COMMENT ON COLUMN searches.runtime_name IS 'NULL as device.';
COMMENT ON COLUMN searches.runtime_version IS 'NULL as device.';
COMMENT ON COLUMN searches.table_digest IS 'Artifact of a table space; NULL: no table space.';
COMMENT ON COLUMN searches.paused_from IS 'Where it goes on when resumed; NULL: not paused.';
COMMENT ON COLUMN searches.state_reason IS 'For people; NULL: nothing to say.';
COMMENT ON COLUMN searches.elimination IS 'NULL: not yet eliminated.';
COMMENT ON COLUMN searches.ranges IS 'Box of the hypervolume, fixed when searching starts; NULL: not yet.';
COMMENT ON COLUMN searches.calibration IS 'NULL: nothing verified yet.';
COMMENT ON COLUMN searches.ended_at IS 'NULL: not ended.';
CREATE INDEX searches_by_state ON searches (state);

CREATE TABLE search_luts (
    search_id uuid PRIMARY KEY REFERENCES searches,
    entries   text NOT NULL
);
COMMENT ON TABLE search_luts IS
    'The look-up table of a search as it stood when searching began; later uploads do not change its proposals.';

CREATE TABLE search_streams (
    search_id      uuid PRIMARY KEY REFERENCES searches,
    last_sequence  bigint NOT NULL DEFAULT 0,
    last_served_at timestamptz
);
COMMENT ON TABLE search_streams IS
    'Numbers the events of a search. Its row is the last lock of every transaction that tells something, so numbers become visible in order.';
COMMENT ON COLUMN search_streams.last_served_at IS 'When a worker last took a job of it; NULL: never.';

CREATE TABLE idempotency_keys (
    key            text PRIMARY KEY,
    request_digest text NOT NULL,
    search_id      uuid NOT NULL REFERENCES searches,
    created_at     timestamptz NOT NULL
);
COMMENT ON TABLE idempotency_keys IS 'Submissions by the key their sender chose; the digest tells a repetition from a misuse.';

CREATE TABLE candidates (
    id             uuid PRIMARY KEY,
    search_id      uuid NOT NULL REFERENCES searches,
    number         bigint NOT NULL CHECK (number >= 0),
    architecture   text NOT NULL,
    layers         jsonb NOT NULL,
    state          candidate_state NOT NULL,
    state_reason   text,
    reference      text,
    parent         bigint,
    action         text,
    why            text,
    predicted      jsonb NOT NULL,
    measured       jsonb NOT NULL DEFAULT '{}',
    verified       jsonb NOT NULL DEFAULT '{}',
    evaluator      text,
    on_front       boolean NOT NULL DEFAULT false,
    device_seconds jsonb,
    artifacts      jsonb NOT NULL DEFAULT '[]',
    created_at     timestamptz NOT NULL,
    evaluated_at   timestamptz,
    UNIQUE (search_id, number),
    UNIQUE (search_id, architecture),
    CHECK ((state = 'evaluated') = (evaluated_at IS NOT NULL)),
    CHECK ((state IN ('infeasible', 'failed')) = (state_reason IS NOT NULL)),
    CHECK (NOT on_front OR state = 'evaluated')
);
COMMENT ON TABLE candidates IS 'Architectures within a search, numbered in the order of their proposal.';
COMMENT ON COLUMN candidates.state_reason IS 'NULL: neither infeasible nor failed.';
COMMENT ON COLUMN candidates.reference IS 'Name of the reference architecture; NULL: proposed by the strategy.';
COMMENT ON COLUMN candidates.parent IS 'Number of the candidate it was made from; NULL: from none.';
COMMENT ON COLUMN candidates.action IS 'NULL: from no parent.';
COMMENT ON COLUMN candidates.why IS 'NULL: a reference architecture.';
COMMENT ON COLUMN candidates.evaluator IS 'NULL: nobody scored it, or a table did.';
COMMENT ON COLUMN candidates.device_seconds IS 'NULL: not evaluated.';
COMMENT ON COLUMN candidates.evaluated_at IS 'NULL: not evaluated.';

CREATE TABLE jobs (
    id              uuid PRIMARY KEY,
    search_id       uuid NOT NULL REFERENCES searches,
    candidate_id    uuid REFERENCES candidates,
    kind            job_kind NOT NULL,
    input           jsonb NOT NULL,
    device          text REFERENCES devices,
    runtime_name    text,
    runtime_version text,
    memory_bytes    bigint NOT NULL DEFAULT 0,
    state           job_state NOT NULL,
    runnable_at     timestamptz NOT NULL,
    attempts        integer NOT NULL DEFAULT 0,
    max_attempts    integer NOT NULL CHECK (max_attempts > 0),
    handovers       integer NOT NULL DEFAULT 0,
    lease_token     uuid,
    worker_id       uuid REFERENCES workers,
    progress        double precision NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 1),
    status          text,
    checkpoint      jsonb,
    result          jsonb,
    train_seconds   double precision NOT NULL DEFAULT 0,
    sample_seconds  double precision NOT NULL DEFAULT 0,
    score_seconds   double precision NOT NULL DEFAULT 0,
    profile_seconds double precision NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    CHECK (attempts BETWEEN 0 AND max_attempts AND attempts <= handovers),
    CHECK ((runtime_name IS NULL) = (runtime_version IS NULL)),
    CHECK ((lease_token IS NULL) = (worker_id IS NULL)),
    CHECK (state <> 'queued' OR lease_token IS NULL),
    CHECK (state NOT IN ('leased', 'succeeded') OR lease_token IS NOT NULL),
    CHECK ((state = 'succeeded') = (result IS NOT NULL)),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL)),
    CHECK (kind = 'profile' OR candidate_id IS NOT NULL),
    CHECK (kind NOT IN ('profile', 'verify') OR device IS NOT NULL)
);
COMMENT ON TABLE jobs IS 'Work for workers, with the lease of whoever has it.';
COMMENT ON COLUMN jobs.candidate_id IS 'NULL: a profile job, which is for no candidate.';
COMMENT ON COLUMN jobs.device IS 'NULL: any device will do.';
COMMENT ON COLUMN jobs.runtime_name IS 'NULL: any runtime will do.';
COMMENT ON COLUMN jobs.runtime_version IS 'NULL: any runtime will do.';
COMMENT ON COLUMN jobs.runnable_at IS 'Earliest start of a queued job and expiry of a leased one.';
COMMENT ON COLUMN jobs.attempts IS 'Hand-overs that count against max_attempts; a released one does not.';
COMMENT ON COLUMN jobs.lease_token IS
    'Token of the lease, or of the last one once the job has ended, so that a repeated result is recognised; NULL: nobody has it.';
COMMENT ON COLUMN jobs.worker_id IS 'NULL as lease_token.';
COMMENT ON COLUMN jobs.status IS 'NULL: nothing said.';
COMMENT ON COLUMN jobs.checkpoint IS 'Artifact from which the next attempt goes on; NULL: from the start.';
COMMENT ON COLUMN jobs.result IS 'NULL: none yet.';
COMMENT ON COLUMN jobs.ended_at IS 'NULL: not ended.';
CREATE INDEX jobs_runnable ON jobs (runnable_at) WHERE state IN ('queued', 'leased');
CREATE INDEX jobs_leased ON jobs (worker_id) WHERE state = 'leased';
CREATE INDEX jobs_by_search ON jobs (search_id, created_at, id);
CREATE UNIQUE INDEX jobs_by_candidate ON jobs (candidate_id, (kind = 'verify')) WHERE candidate_id IS NOT NULL;

CREATE TABLE attempts (
    job_id     uuid NOT NULL REFERENCES jobs,
    attempt    integer NOT NULL CHECK (attempt > 0),
    worker_id  uuid NOT NULL REFERENCES workers,
    started_at timestamptz NOT NULL,
    ended_at   timestamptz,
    error      text,
    log        text,
    PRIMARY KEY (job_id, attempt),
    CHECK (error IS NULL OR ended_at IS NOT NULL)
);
COMMENT ON TABLE attempts IS 'Every hand-over of a job and how it ended.';
COMMENT ON COLUMN attempts.ended_at IS 'NULL: it runs.';
COMMENT ON COLUMN attempts.error IS 'NULL: it runs or it succeeded.';
COMMENT ON COLUMN attempts.log IS 'End of its log; NULL: none was sent.';

CREATE TABLE curve_points (
    job_id uuid NOT NULL REFERENCES jobs,
    step   bigint NOT NULL CHECK (step >= 0),
    loss   double precision NOT NULL,
    PRIMARY KEY (job_id, step)
);
COMMENT ON TABLE curve_points IS 'Loss curves; an attempt that goes on from a checkpoint writes over what came after it.';

CREATE TABLE front_history (
    search_id    uuid NOT NULL REFERENCES searches,
    number       bigint NOT NULL,
    evaluations  bigint NOT NULL,
    device_hours double precision NOT NULL,
    hypervolume  double precision NOT NULL,
    front        bigint[] NOT NULL,
    PRIMARY KEY (search_id, number)
);
COMMENT ON TABLE front_history IS
    'Front (candidate numbers) and hypervolume after each evaluation, in the order of the numbers, whatever the order in which they came in.';

CREATE TABLE events (
    search_id uuid NOT NULL REFERENCES searches,
    sequence  bigint NOT NULL,
    at        timestamptz NOT NULL,
    body      jsonb NOT NULL,
    PRIMARY KEY (search_id, sequence)
);
COMMENT ON TABLE events IS 'What a search told, numbered from 1 without gaps.';
