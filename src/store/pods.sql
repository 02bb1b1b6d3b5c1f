-- Sandboxes and containers. `record` is the object as JSON (src/pod); `config`
-- is the CRI request as it came, protobuf: labels and annotations go back byte
-- for byte.
CREATE TABLE sandboxes (
    id     TEXT PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL,
    config BLOB NOT NULL
) STRICT;
CREATE TABLE containers (
    id      TEXT PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    sandbox TEXT NOT NULL REFERENCES sandboxes (id),
    record  TEXT NOT NULL,
    config  BLOB NOT NULL
) STRICT;
-- Facts about this root: the subnets that were chosen, the pod CIDR that was given.
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
