-- Deployments: chains of jobs that take a candidate to a device; ablations: groups of them.
-- A deployment's row is locked before the jobs of its steps.

CREATE TYPE deployment_state AS ENUM ('running', 'done', 'failed', 'cancelled');
CREATE TYPE deployment_step AS ENUM ('train_final', 'distill', 'compress_decoder', 'export', 'profile_model');

CREATE TABLE ablations (
    id           uuid PRIMARY KEY,
    candidate_id uuid NOT NULL REFERENCES candidates,
    request      jsonb NOT NULL,
    created_at   timestamptz NOT NULL
);
COMMENT ON TABLE ablations IS 'Tables of the paper that someone asked for; their cells are deployments.';

CREATE TABLE deployments (
    id           uuid PRIMARY KEY,
    candidate_id uuid NOT NULL REFERENCES candidates,
    settings     jsonb NOT NULL,
    space        text NOT NULL,
    architecture text NOT NULL,
    fresh        boolean NOT NULL,
    after_id     uuid REFERENCES deployments,
    ablation_id  uuid REFERENCES ablations,
    cell         text,
    state        deployment_state NOT NULL,
    state_reason text,
    created_at   timestamptz NOT NULL,
    ended_at     timestamptz,
    CHECK ((ablation_id IS NULL) = (cell IS NULL)),
    CHECK ((state = 'running') = (ended_at IS NULL)),
    CHECK (state <> 'failed' OR state_reason IS NOT NULL)
);
COMMENT ON TABLE deployments IS 'A candidate, or what an ablation made of it, on its way to a device; only its state changes.';
COMMENT ON COLUMN deployments.fresh IS 'Whether the final training starts from fresh temporal layers, not from the candidate''s.';
COMMENT ON COLUMN deployments.after_id IS 'What it goes on from; NULL: from the candidate.';
COMMENT ON COLUMN deployments.ablation_id IS 'NULL: it was asked for by itself.';
COMMENT ON COLUMN deployments.cell IS 'NULL as ablation_id.';
COMMENT ON COLUMN deployments.state_reason IS 'For people; NULL: nothing to say.';
COMMENT ON COLUMN deployments.ended_at IS 'NULL: it runs.';
CREATE INDEX deployments_running ON deployments (id) WHERE state = 'running';
CREATE INDEX deployments_by_ablation ON deployments (ablation_id, id) WHERE ablation_id IS NOT NULL;
CREATE INDEX deployments_after ON deployments (after_id) WHERE after_id IS NOT NULL;

CREATE TABLE deployment_steps (
    deployment_id uuid NOT NULL REFERENCES deployments,
    step          deployment_step NOT NULL,
    job_id        uuid NOT NULL UNIQUE REFERENCES jobs,
    PRIMARY KEY (deployment_id, step)
);
COMMENT ON TABLE deployment_steps IS 'Steps that were asked for; a retried one is the same job, which goes on from its checkpoint.';
