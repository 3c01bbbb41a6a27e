"""The SQL of a verification: its tables, and the queries that compare them."""

from __future__ import annotations

TABLES = """
CREATE TABLE aggregates (window TEXT PRIMARY KEY, etag TEXT) WITHOUT ROWID;
CREATE TABLE counted (key TEXT, size INT, etag TEXT, modified INT, window TEXT, intact INT,
    archive_key TEXT, conflict_key TEXT, pack TEXT, offset INT);
CREATE TABLE packs (key TEXT, size INT, etag TEXT, modified INT);
CREATE TABLE named_packs (key TEXT, size INT, etag TEXT, window TEXT, id TEXT, files INT);
CREATE TABLE entries (key TEXT, etag TEXT, window TEXT, intact INT, moved_to TEXT, reason TEXT);
CREATE TABLE assigned_counted AS SELECT * FROM counted;
CREATE TABLE assigned_entries AS SELECT * FROM entries;
CREATE TABLE archived (key TEXT, size INT, etag TEXT, modified INT);
CREATE TABLE quarantined (key TEXT, size INT, etag TEXT, modified INT);
CREATE TABLE inbox (key TEXT, size INT, etag TEXT, modified INT,
    window TEXT, archive_key TEXT, quarantine_key TEXT, conflict_key TEXT);
"""

# Created after all rows are inserted: to sort once is much faster than to keep sorted.
INDEXES = """
CREATE INDEX counted_by_key ON counted (key, etag);
CREATE INDEX counted_by_archive_key ON counted (archive_key);
CREATE INDEX counted_by_conflict_key ON counted (conflict_key);
CREATE INDEX entries_by_key ON entries (key, etag);
CREATE INDEX entries_by_place ON entries (moved_to);
CREATE INDEX archived_by_key ON archived (key);
CREATE INDEX quarantined_by_key ON quarantined (key);
CREATE INDEX packs_by_key ON packs (key);
CREATE INDEX named_packs_by_key ON named_packs (key);
CREATE INDEX inbox_by_key ON inbox (key);
CREATE INDEX inbox_by_quarantine_key ON inbox (quarantine_key);
CREATE INDEX inbox_by_conflict_key ON inbox (conflict_key);
"""

UNCOUNTED = """
SELECT key, size, etag, modified FROM archived AS a
WHERE NOT EXISTS (SELECT 1 FROM counted AS c
    WHERE c.archive_key = a.key AND (c.etag = a.etag OR c.size = a.size))
AND NOT EXISTS (SELECT 1 FROM counted AS c
    WHERE c.conflict_key = a.key AND (c.etag = a.etag OR c.size = a.size))
"""

WITHOUT_ENTRY = """
SELECT key, size, etag, modified FROM quarantined AS q
WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.moved_to = q.key)
AND NOT EXISTS (SELECT 1 FROM inbox AS i
    WHERE i.quarantine_key = q.key AND (i.etag = q.etag OR i.size = q.size))
AND NOT EXISTS (SELECT 1 FROM inbox AS i
    WHERE i.conflict_key = q.key AND (i.etag = q.etag OR i.size = q.size))
"""

COUNTED_TWICE = """
SELECT key, group_concat(DISTINCT window) FROM counted WHERE intact
GROUP BY key, etag HAVING count(DISTINCT window) > 1
"""

# With min(), the other columns of `counted` are those of the same row.
UNFINISHED_COUNTED = """
SELECT i.key, i.size, i.etag, i.modified, c.pack, c.offset, min(c.window)
FROM inbox AS i JOIN counted AS c
    ON c.key = i.key AND c.etag = i.etag AND c.modified = i.modified AND c.intact
GROUP BY i.key, i.etag
"""

UNFINISHED_QUARANTINED = """
SELECT key, size, etag, modified, '', 0, (SELECT e.window FROM entries AS e
    WHERE e.key = i.key AND e.etag = i.etag AND e.window = i.window AND e.intact) AS named_by
FROM inbox AS i WHERE named_by IS NOT NULL
"""

# If both files are counted, the move to the archive will add a suffix: it is only unfinished.
CONFLICTS = """
SELECT i.key, i.size, i.etag, i.modified, a.key, a.size, a.etag, a.modified
FROM inbox AS i JOIN archived AS a ON a.key = i.archive_key WHERE a.etag <> i.etag AND NOT (
    EXISTS (SELECT 1 FROM counted AS c WHERE c.key = i.key AND c.etag = i.etag)
    AND EXISTS (SELECT 1 FROM counted AS c
        WHERE c.archive_key = a.key AND (c.etag = a.etag OR c.size = a.size)))
"""

# A file that was put back into the inbox, or counted from there, is not missing.
ORPHAN_ENTRIES = """
SELECT key, etag, window, moved_to, reason FROM entries AS e
WHERE NOT EXISTS (SELECT 1 FROM quarantined AS q WHERE q.key = e.moved_to)
AND NOT EXISTS (SELECT 1 FROM inbox AS i WHERE i.key = e.key)
AND NOT EXISTS (SELECT 1 FROM counted AS c WHERE c.key = e.key)
"""

WAITING = """
SELECT key, size, etag, modified FROM inbox AS i WHERE modified <= :before AND window <= :window
AND NOT EXISTS (SELECT 1 FROM counted AS c WHERE c.key = i.key AND c.etag = i.etag)
AND NOT EXISTS (SELECT 1 FROM entries AS e
    WHERE e.key = i.key AND e.etag = i.etag AND e.window = i.window)
"""

# Its files are checked one by one; a copy of a pack may have another etag.
BROKEN_PACKS = """
SELECT key, size, etag, window FROM named_packs AS n
WHERE NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.key = n.key AND p.size = n.size)
"""

UNNAMED_PACKS = """
SELECT key, size, etag, modified FROM packs AS p WHERE modified <= :before
AND NOT EXISTS (SELECT 1 FROM named_packs AS n WHERE n.key = p.key)
"""

PACKS_BY_ID = "SELECT id, key, etag, files, size FROM named_packs WHERE id = ?"

COUNTED_OUTSIDE = """
SELECT 1 FROM counted WHERE key = ? AND etag = ? AND intact AND pack <> ? LIMIT 1
"""

NAMED = "SELECT 1 FROM counted WHERE key = ? AND etag = ? LIMIT 1"

SALVAGED_COUNTED = """
SELECT key, min(size), etag, min(modified), max(pack), max(offset) FROM (
    SELECT * FROM counted WHERE window = :window AND NOT intact
    UNION SELECT * FROM assigned_counted WHERE window = :window
) GROUP BY key, etag ORDER BY key, etag
"""

SALVAGED_QUARANTINED = """
SELECT key, etag, window, min(moved_to), min(reason) FROM (
    SELECT * FROM entries WHERE window = :window AND NOT intact
    UNION SELECT * FROM assigned_entries WHERE window = :window
) GROUP BY key, etag ORDER BY key, etag
"""

COUNTED_ELSEWHERE = """
SELECT count(*) FROM counted AS d WHERE d.window = :window AND NOT d.intact
AND EXISTS (SELECT 1 FROM counted AS c WHERE c.key = d.key AND c.etag = d.etag AND c.intact)
"""

COUNTS = """
SELECT (SELECT count(*) FROM aggregates), count(*), coalesce(sum(size), 0),
    (SELECT count(*) FROM archived), (SELECT count(*) FROM quarantined),
    (SELECT count(*) FROM inbox)
FROM counted
"""
