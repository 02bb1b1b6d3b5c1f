-- From version 1 to 2: layers that can be looked at after an unclean stop of the machine.
--
-- `seal` is src/image/seal's; empty: from before there were any, made when somebody looks.
-- A `broken` layer is not what it was. Nothing new is built on it; it goes when the images
-- and containers that stand on it do. So a diff id and variant are unique among whole ones.
CREATE TABLE layers_2 (
    number  INTEGER PRIMARY KEY,
    diff_id TEXT NOT NULL,
    variant TEXT NOT NULL,
    implied BLOB NOT NULL,
    opaque  INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    inodes  INTEGER NOT NULL,
    seal    BLOB NOT NULL,
    broken  INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO layers_2 SELECT number, diff_id, variant, implied, opaque, bytes, inodes, x'', 0 FROM layers;
DROP TABLE layers;
ALTER TABLE layers_2 RENAME TO layers;
CREATE UNIQUE INDEX layers_whole ON layers (diff_id, variant) WHERE NOT broken;
