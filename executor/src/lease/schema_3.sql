-- What projects have used, as it counted when they last gave something back; and the same at the cut.
CREATE TABLE used (
    project TEXT PRIMARY KEY,
    body    TEXT NOT NULL
) STRICT;
CREATE TABLE base_used (
    project TEXT PRIMARY KEY,
    body    TEXT NOT NULL
) STRICT;
