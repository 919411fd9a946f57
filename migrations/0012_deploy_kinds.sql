-- Jobs that take a point of the front to the device.

ALTER TYPE job_kind ADD VALUE 'train_final';
ALTER TYPE job_kind ADD VALUE 'distill';
ALTER TYPE job_kind ADD VALUE 'compress_decoder';
ALTER TYPE job_kind ADD VALUE 'export';
ALTER TYPE job_kind ADD VALUE 'profile_model';
