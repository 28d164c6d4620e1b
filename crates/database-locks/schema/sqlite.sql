-- The locks of one machine, one row for each. `dblock init` and `Locks::migrate` run exactly this.
--
-- expires_at: the end of the lease (UTC, 'YYYY-MM-DD HH:MM:SS.ffffff'); null: free;
--             9999-12-31 00:00:00.000000: infinite.
-- granted_until: a copy of expires_at.
-- shared: whether the lock was ever shared. If so, an exclusive grant looks for shared ones.
CREATE TABLE IF NOT EXISTS {table} (
    id            integer      NOT NULL PRIMARY KEY AUTOINCREMENT,
    name          varchar(255) NOT NULL UNIQUE,
    locked_by     text         NULL,
    expires_at    datetime     NULL,
    token         bigint       NOT NULL DEFAULT 0,
    grant_id      char(32)     NULL,
    granted_until datetime     NULL,
    acquired_at   datetime     NULL,
    renewed_at    datetime     NULL,
    waiting_until datetime     NULL,
    metadata      text         NULL,
    shared        boolean      NOT NULL DEFAULT false
);
