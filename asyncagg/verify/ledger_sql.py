"""The tables of a ledger, and the questions that are put to them."""

from __future__ import annotations

__all__ = (
    "CLASHES",
    "COUNTS",
    "ELSEWHERE",
    "INDEXES",
    "MISSED",
    "SALVAGED",
    "SALVAGED_REFUSED",
    "TABLES",
    "TWICE",
    "UNCOUNTED",
    "UNENTERED",
    "UNFINISHED_COUNTED",
    "UNFINISHED_REFUSED",
)

TABLES = """
CREATE TABLE aggregates (window TEXT PRIMARY KEY, etag TEXT) WITHOUT ROWID;
CREATE TABLE counted (key TEXT, etag TEXT, size INT, modified INT, window TEXT, sound INT,
    place TEXT, beside TEXT);
CREATE TABLE refused (key TEXT, etag TEXT, window TEXT, sound INT, moved_to TEXT, reason TEXT);
CREATE TABLE claimed AS SELECT * FROM counted;
CREATE TABLE claimed_refused AS SELECT * FROM refused;
CREATE TABLE archived (key TEXT, size INT, etag TEXT, modified INT);
CREATE TABLE quarantined (key TEXT, size INT, etag TEXT, modified INT);
CREATE TABLE inbox (key TEXT, size INT, etag TEXT, modified INT,
    window TEXT, place TEXT, hold TEXT, hold_beside TEXT);
"""

# Made once all rows are in: sorting them at once is much faster than keeping them sorted.
INDEXES = """
CREATE INDEX counted_key ON counted (key, etag);
CREATE INDEX counted_place ON counted (place);
CREATE INDEX counted_beside ON counted (beside);
CREATE INDEX refused_key ON refused (key, etag);
CREATE INDEX refused_place ON refused (moved_to);
CREATE INDEX archived_key ON archived (key);
CREATE INDEX quarantined_key ON quarantined (key);
CREATE INDEX inbox_key ON inbox (key);
CREATE INDEX inbox_hold ON inbox (hold);
CREATE INDEX inbox_hold_beside ON inbox (hold_beside);
"""

UNCOUNTED = """
SELECT key, size, etag, modified FROM archived AS a
WHERE NOT EXISTS (SELECT 1 FROM counted AS c
    WHERE c.place = a.key AND (c.etag = a.etag OR c.size = a.size))
AND NOT EXISTS (SELECT 1 FROM counted AS c
    WHERE c.beside = a.key AND (c.etag = a.etag OR c.size = a.size))
"""

UNENTERED = """
SELECT key, size, etag, modified FROM quarantined AS q
WHERE NOT EXISTS (SELECT 1 FROM refused AS r WHERE r.moved_to = q.key)
AND NOT EXISTS (SELECT 1 FROM inbox AS i
    WHERE i.hold = q.key AND (i.etag = q.etag OR i.size = q.size))
AND NOT EXISTS (SELECT 1 FROM inbox AS i
    WHERE i.hold_beside = q.key AND (i.etag = q.etag OR i.size = q.size))
"""

TWICE = """
SELECT key, etag, group_concat(DISTINCT window), count(DISTINCT window) FROM counted WHERE sound
GROUP BY key, etag HAVING count(DISTINCT window) > 1
"""

UNFINISHED_COUNTED = """
SELECT key, size, etag, modified, (SELECT min(c.window) FROM counted AS c
    WHERE c.key = i.key AND c.etag = i.etag AND c.modified = i.modified AND c.sound) AS named
FROM inbox AS i WHERE named IS NOT NULL
"""

UNFINISHED_REFUSED = """
SELECT key, size, etag, modified, (SELECT r.window FROM refused AS r
    WHERE r.key = i.key AND r.etag = i.etag AND r.window = i.window AND r.sound) AS named
FROM inbox AS i WHERE named IS NOT NULL
"""

# Where both are counted, a suffix will tell them apart: that is a move to be finished.
CLASHES = """
SELECT i.key, i.size, i.etag, i.modified, a.key, a.size, a.etag, a.modified
FROM inbox AS i JOIN archived AS a ON a.key = i.place WHERE a.etag <> i.etag AND NOT (
    EXISTS (SELECT 1 FROM counted AS c WHERE c.key = i.key AND c.etag = i.etag)
    AND EXISTS (SELECT 1 FROM counted AS c
        WHERE c.place = a.key AND (c.etag = a.etag OR c.size = a.size)))
"""

# What was put back into the inbox, and counted from there, is not missed.
MISSED = """
SELECT key, etag, window, moved_to FROM refused AS r
WHERE NOT EXISTS (SELECT 1 FROM quarantined AS q WHERE q.key = r.moved_to)
AND NOT EXISTS (SELECT 1 FROM inbox AS i WHERE i.key = r.key)
AND NOT EXISTS (SELECT 1 FROM counted AS c WHERE c.key = r.key)
"""

SALVAGED = """
SELECT key, min(size), etag, min(modified) FROM (
    SELECT * FROM counted WHERE window = :window AND NOT sound
    UNION SELECT * FROM claimed WHERE window = :window
) GROUP BY key, etag ORDER BY key, etag
"""

SALVAGED_REFUSED = """
SELECT key, etag, window, min(moved_to), min(reason) FROM (
    SELECT * FROM refused WHERE window = :window AND NOT sound
    UNION SELECT * FROM claimed_refused WHERE window = :window
) GROUP BY key, etag ORDER BY key, etag
"""

ELSEWHERE = """
SELECT count(*) FROM counted AS d WHERE d.window = :window AND NOT d.sound
AND EXISTS (SELECT 1 FROM counted AS c WHERE c.key = d.key AND c.etag = d.etag AND c.sound)
"""


COUNTS = """
SELECT (SELECT count(*) FROM aggregates), count(*), coalesce(sum(size), 0),
    (SELECT count(*) FROM archived), (SELECT count(*) FROM quarantined),
    (SELECT count(*) FROM inbox)
FROM counted
"""
