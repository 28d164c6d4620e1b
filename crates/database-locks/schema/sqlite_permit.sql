-- The permits of semaphores and the shared grants, one row for each. `dblock init` and `Locks::migrate`
-- run exactly this.
--
-- slot: 0 and above: a permit; -1: the operator's limit; -2 and below, random: a shared grant.
-- permits: the limit that the latest holder gave; in slot -1 the operator's.
-- The other columns are as in the table of locks.
CREATE TABLE IF NOT EXISTS {permits} (
    id            integer      NOT NULL PRIMARY KEY AUTOINCREMENT,
    name          varchar(255) NOT NULL,
    slot          integer      NOT NULL,
    permits       integer      NULL,
    locked_by     text         NULL,
    expires_at    datetime     NULL,
    token         bigint       NOT NULL DEFAULT 0,
    grant_id      char(32)     NULL,
    granted_until datetime     NULL,
    acquired_at   datetime     NULL,
    renewed_at    datetime     NULL,
    waiting_until datetime     NULL,
    metadata      text         NULL,
    shared        boolean      NOT NULL DEFAULT false,
    UNIQUE (name, slot)
);
