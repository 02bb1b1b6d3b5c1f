-- The network of pods (src/network). A row is written before what it stands for
-- is made in the kernel, and deleted after that is gone.

-- The subnets of the built-in bridge, the primary one first. `last` is the
-- offset of the address given out last: the search goes on from there, so that
-- an address is not used again at once.
CREATE TABLE network_subnets (
    family   INTEGER PRIMARY KEY CHECK (family IN (4, 6)),
    position INTEGER NOT NULL,
    subnet   TEXT NOT NULL,
    last     INTEGER NOT NULL
) STRICT;
-- The bridge that this berthd made (one row, or none): another of the same name
-- is somebody else's.
CREATE TABLE network_bridge (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
-- One per sandbox that has or may have a network; `record` is JSON.
CREATE TABLE network_attachments (
    sandbox TEXT PRIMARY KEY,
    record  TEXT NOT NULL
) STRICT;
-- Addresses of the built-in bridge, as offsets in the subnet of their family.
CREATE TABLE network_addresses (
    family  INTEGER NOT NULL,
    offset  INTEGER NOT NULL,
    sandbox TEXT NOT NULL REFERENCES network_attachments (sandbox),
    PRIMARY KEY (family, offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX network_addresses_sandbox ON network_addresses (sandbox);
-- Host ports; `host_ip` is empty for every address of the family. `protocol` is
-- the number in the IP header.
CREATE TABLE network_ports (
    protocol  INTEGER NOT NULL,
    family    INTEGER NOT NULL,
    host_port INTEGER NOT NULL,
    host_ip   TEXT NOT NULL,
    pod_port  INTEGER NOT NULL,
    sandbox   TEXT NOT NULL REFERENCES network_attachments (sandbox),
    PRIMARY KEY (protocol, family, host_port, host_ip)
) STRICT, WITHOUT ROWID;
CREATE INDEX network_ports_sandbox ON network_ports (sandbox);
