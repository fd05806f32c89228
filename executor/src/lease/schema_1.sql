-- Rows are whole in `body`; the other columns are those that the database watches.
CREATE TABLE resource (
    id      TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    serial  INTEGER NOT NULL,
    state   TEXT NOT NULL,
    body    TEXT NOT NULL
) STRICT;
CREATE INDEX resource_by_serial ON resource (serial);

CREATE TABLE lease (
    id       TEXT PRIMARY KEY,
    version  INTEGER NOT NULL,
    serial   INTEGER NOT NULL,
    state    TEXT NOT NULL,
    resource TEXT REFERENCES resource (id),
    seat     TEXT,
    body     TEXT NOT NULL,
    CHECK (state NOT IN ('acquired', 'active') OR resource IS NOT NULL)
) STRICT;
CREATE INDEX lease_by_serial ON lease (serial);
-- The second line behind the slots: nobody sits where somebody sits.
CREATE UNIQUE INDEX one_lease_per_seat ON lease (seat) WHERE state IN ('acquired', 'active', 'releasing');

CREATE TABLE slot (
    key   TEXT PRIMARY KEY,
    owner TEXT NOT NULL
) STRICT;

CREATE TABLE command (
    id          INTEGER PRIMARY KEY,
    target      TEXT NOT NULL,
    consumed_at INTEGER,
    body        TEXT NOT NULL
) STRICT;
CREATE INDEX command_unread ON command (id) WHERE consumed_at IS NULL;

CREATE TABLE effect (
    id        INTEGER PRIMARY KEY,
    object    TEXT NOT NULL,
    closed_at INTEGER,
    body      TEXT NOT NULL
) STRICT;
CREATE INDEX effect_open ON effect (object) WHERE closed_at IS NULL;

CREATE TABLE authorization (
    subject   TEXT NOT NULL,
    blueprint TEXT NOT NULL,
    body      TEXT NOT NULL,
    PRIMARY KEY (subject, blueprint)
) STRICT;

CREATE TABLE event (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    object TEXT NOT NULL,
    body   TEXT NOT NULL
) STRICT;
CREATE INDEX event_by_object ON event (object, seq);
