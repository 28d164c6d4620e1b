-- The table of locks, as `dblock init` and `locks.migrate()` make it on MySQL and MariaDB.
--
-- {table} is its name, by default database_locks_lock. {collation} compares names byte for
-- byte without padding: utf8mb4_0900_bin on MySQL, utf8mb4_nopad_bin on MariaDB. All times are UTC.
-- The first four columns are those of legacy (django-database-locks 0.5), where `id` is an int. The
-- defaults of the others let legacy processes go on writing to the same table.
--
-- Nothing is left to the server's defaults: with a row format such as COMPACT the index on `name` would be
-- too long, and without row locks and transactions one lock could have two holders.
CREATE TABLE IF NOT EXISTS {table} (
    id bigint AUTO_INCREMENT NOT NULL PRIMARY KEY,
    name varchar(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    -- The present or latest holder, for people.
    locked_by longtext CHARACTER SET utf8mb4 NULL,
    -- The end of the lease; null: free; 9999-12-31 00:00:00: infinite.
    expires_at datetime(6) NULL,
    -- The fencing number: greater with each grant.
    token bigint NOT NULL DEFAULT 0,
    -- Random for each grant; null when released.
    grant_id char(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
    -- A copy of expires_at; if they differ, a legacy client wrote the row.
    granted_until datetime(6) NULL,
    acquired_at datetime(6) NULL,
    -- When it was last renewed or released.
    renewed_at datetime(6) NULL,
    -- PostgreSQL only; here so that the table is the same everywhere.
    waiting_until datetime(6) NULL,
    -- The holder's metadata, JSON.
    metadata longtext CHARACTER SET utf8mb4 NULL,
    -- Whether the lock was ever shared. If so, an exclusive grant looks for shared ones.
    shared tinyint(1) NOT NULL DEFAULT 0,
    -- The statements name this index. Add no other: an index on the expiry causes deadlocks.
    UNIQUE KEY name (name)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}
