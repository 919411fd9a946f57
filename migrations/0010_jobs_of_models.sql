-- What holds of jobs that make and score models. (A value added to an enum can be used only in a later migration.)

ALTER TABLE jobs DROP CONSTRAINT jobs_check7;
ALTER TABLE jobs ADD CONSTRAINT jobs_candidate
    CHECK (kind NOT IN ('evaluate', 'verify', 'lookup') OR candidate_id IS NOT NULL);
ALTER TABLE jobs DROP CONSTRAINT jobs_check9;
ALTER TABLE jobs ADD CONSTRAINT jobs_search CHECK (search_id IS NOT NULL OR candidate_id IS NULL);
ALTER TABLE jobs DROP CONSTRAINT jobs_check10;
ALTER TABLE jobs ADD CONSTRAINT jobs_evaluator
    CHECK ((kind IN ('evaluate', 'benchmark')) = (evaluator IS NOT NULL));
COMMENT ON COLUMN jobs.search_id IS 'NULL: a job that was asked for by itself.';
COMMENT ON COLUMN jobs.candidate_id IS 'NULL: a job that is for no candidate.';
