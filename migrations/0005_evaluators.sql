-- Who evaluates: a job goes to a worker that brings its evaluator.

ALTER TABLE workers ADD COLUMN evaluators text[] NOT NULL DEFAULT '{built-in}';
ALTER TABLE workers ALTER COLUMN evaluators DROP DEFAULT;
COMMENT ON COLUMN workers.evaluators IS 'Evaluators it brings; `own` for spaces that name none.';

ALTER TABLE jobs ADD COLUMN evaluator text;
UPDATE jobs SET evaluator = CASE WHEN input ->> 'space' LIKE '%[evaluation]%' THEN 'built-in' ELSE 'own' END
WHERE kind = 'evaluate';
ALTER TABLE jobs ADD CHECK ((kind = 'evaluate') = (evaluator IS NOT NULL));
COMMENT ON COLUMN jobs.evaluator IS 'What its worker must bring; NULL: it evaluates nothing.';
