-- Blocks that are measured because someone asked for them, for no search.

ALTER TABLE jobs ALTER COLUMN search_id DROP NOT NULL;
ALTER TABLE jobs ADD CHECK (search_id IS NOT NULL OR kind = 'profile');
COMMENT ON COLUMN jobs.search_id IS 'NULL: a profile job that was asked for by itself.';
CREATE INDEX jobs_of_no_search ON jobs (device) WHERE search_id IS NULL;
