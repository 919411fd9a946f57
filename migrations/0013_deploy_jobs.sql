-- What holds of the jobs that take a model to the device. (Their kinds are in the migration before.)

ALTER TABLE jobs DROP CONSTRAINT jobs_evaluator;
ALTER TABLE jobs ADD CONSTRAINT jobs_evaluator
    CHECK ((kind IN ('evaluate', 'benchmark', 'train_final', 'distill')) = (evaluator IS NOT NULL));
ALTER TABLE jobs ADD CONSTRAINT jobs_measured_device CHECK (kind <> 'profile_model' OR device IS NOT NULL);
