-- Jobs that make a model and score it; they belong to no search.

ALTER TYPE job_kind ADD VALUE 'encode_latents';
ALTER TYPE job_kind ADD VALUE 'prune_backbone';
ALTER TYPE job_kind ADD VALUE 'benchmark';
