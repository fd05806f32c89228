-- What the farm remembers beside its rows: when it was last alive, and the newest numbers at the cut.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- The rows as they were after the newest event that is no longer kept: what later events replay from.
CREATE TABLE base_row (
    object TEXT PRIMARY KEY,
    body   TEXT NOT NULL
) STRICT;
CREATE TABLE base_slot (
    key   TEXT PRIMARY KEY,
    owner TEXT NOT NULL
) STRICT;
CREATE TABLE base_command (
    id     INTEGER PRIMARY KEY,
    target TEXT NOT NULL,
    body   TEXT NOT NULL
) STRICT;
CREATE INDEX base_command_by_target ON base_command (target);
CREATE TABLE base_effect (
    object TEXT PRIMARY KEY,
    body   TEXT NOT NULL
) STRICT;

CREATE INDEX lease_by_resource ON lease (resource);
CREATE INDEX effect_by_object ON effect (object);
