-- The table of permits, as `dblock init` and `locks.migrate()` make it on MySQL and MariaDB: the rows of
-- semaphores and of shared grants.
--
-- {permits} is its name, by default database_locks_permit. {collation} is as for the table of locks. The
-- texts are short columns, not longtext: MariaDB writes a temporary table with a longtext to disk.
CREATE TABLE IF NOT EXISTS {permits} (
    id bigint AUTO_INCREMENT NOT NULL PRIMARY KEY,
    name varchar(255) CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL,
    -- 0 and above: a permit; -1: the operator's limit; -2 and below, random: a shared grant.
    slot integer NOT NULL,
    -- The limit that the latest holder gave; in slot -1 the operator's.
    permits integer NULL,
    -- The other columns are as in the table of locks.
    locked_by varchar(255) CHARACTER SET utf8mb4 NULL,
    expires_at datetime(6) NULL,
    token bigint NOT NULL DEFAULT 0,
    grant_id char(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
    granted_until datetime(6) NULL,
    acquired_at datetime(6) NULL,
    renewed_at datetime(6) NULL,
    waiting_until datetime(6) NULL,
    metadata varchar(4096) CHARACTER SET ascii NULL,
    -- Whether it is a shared grant.
    shared tinyint(1) NOT NULL DEFAULT 0,
    -- The statements name this index.
    UNIQUE KEY name (name, slot)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}
