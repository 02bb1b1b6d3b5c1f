-- Images, layers and who uses them (src/image). Digests are texts: sha256:HEX.
--
-- A row here is a promise: an image is inserted when its layers and blobs have
-- reached the disk, and rows of layers are deleted (durably) before their folders.

-- `id` is the digest of the config, `manifest` that of the platform's manifest;
-- both are blobs. `size`: compressed layers, config and manifest, in bytes.
CREATE TABLE images (
    id       TEXT PRIMARY KEY,
    manifest TEXT NOT NULL,
    size     INTEGER NOT NULL
) STRICT;
-- `name` is host/path:tag or host/path@digest; `target` the digest of the
-- manifest or index that the name stood for.
CREATE TABLE image_references (
    name   TEXT PRIMARY KEY,
    image  TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    target TEXT NOT NULL
) STRICT;
CREATE INDEX image_references_image ON image_references (image);
-- One folder ROOT/layers/NUMBER. `implied` are the folders that the layer's tar
-- had no entry for, each path ended by a zero byte; `variant` says what they took from the layers
-- below ("": nothing), so that one diff id may be there in several variants.
CREATE TABLE layers (
    number  INTEGER PRIMARY KEY,
    diff_id TEXT NOT NULL,
    variant TEXT NOT NULL,
    implied BLOB NOT NULL,
    opaque  INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    inodes  INTEGER NOT NULL,
    UNIQUE (diff_id, variant)
) STRICT;
-- Position 0 is the bottom.
CREATE TABLE image_layers (
    image    TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer    INTEGER NOT NULL REFERENCES layers (number),
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_layer ON image_layers (layer);
-- Layers that containers stand on stay, whatever happens to their image.
CREATE TABLE layer_uses (
    container TEXT NOT NULL,
    layer     INTEGER NOT NULL REFERENCES layers (number),
    PRIMARY KEY (container, layer)
) STRICT, WITHOUT ROWID;
CREATE INDEX layer_uses_layer ON layer_uses (layer);
