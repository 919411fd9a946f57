-- Device-seconds belong to attempts: also those that were killed or failed held their device.

ALTER TABLE attempts
    ADD COLUMN train_seconds   double precision NOT NULL DEFAULT 0 CHECK (train_seconds >= 0),
    ADD COLUMN sample_seconds  double precision NOT NULL DEFAULT 0 CHECK (sample_seconds >= 0),
    ADD COLUMN score_seconds   double precision NOT NULL DEFAULT 0 CHECK (score_seconds >= 0),
    ADD COLUMN profile_seconds double precision NOT NULL DEFAULT 0 CHECK (profile_seconds >= 0);
COMMENT ON COLUMN attempts.train_seconds IS
    'Last known of this attempt alone, as are the other parts: the job''s are the sum over its attempts.';

UPDATE attempts SET train_seconds = j.train_seconds, sample_seconds = j.sample_seconds,
    score_seconds = j.score_seconds, profile_seconds = j.profile_seconds
FROM jobs j WHERE j.id = attempts.job_id AND j.state = 'succeeded' AND attempts.attempt = j.handovers;

ALTER TABLE jobs
    DROP COLUMN train_seconds,
    DROP COLUMN sample_seconds,
    DROP COLUMN score_seconds,
    DROP COLUMN profile_seconds;
