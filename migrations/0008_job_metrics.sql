-- Figures of a job that is still running.

ALTER TABLE jobs ADD COLUMN metrics jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN jobs.metrics IS 'Figures so far, of the attempt that runs or ran last; the result has the final ones.';
