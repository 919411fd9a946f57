-- Artifacts and access tokens.

CREATE TABLE artifacts (
    digest      text PRIMARY KEY CHECK (digest ~ '^[0-9a-f]{64}$'),
    media_type  text NOT NULL,
    bytes       bigint NOT NULL CHECK (bytes >= 0),
    created_at  timestamptz NOT NULL
);
COMMENT ON TABLE artifacts IS 'Artifacts whose bytes are complete and verified in the artifact store; they never change.';

CREATE TYPE role AS ENUM ('admin', 'researcher', 'worker', 'device', 'viewer');

CREATE TABLE tokens (
    id            uuid PRIMARY KEY,
    secret_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(secret_sha256) = 32),
    role          role NOT NULL,
    name          text,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz
);
COMMENT ON TABLE tokens IS 'Access tokens. A secret is 256 random bits, so a plain hash of it cannot be guessed back.';
COMMENT ON COLUMN tokens.name IS 'For people; NULL: none given.';
COMMENT ON COLUMN tokens.expires_at IS 'NULL: never.';
COMMENT ON COLUMN tokens.revoked_at IS 'NULL: not revoked.';
COMMENT ON COLUMN tokens.last_used_at IS 'To the minute; NULL: never used.';
