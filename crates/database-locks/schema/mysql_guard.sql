-- The body of the three triggers of a guarded table, BEFORE INSERT, UPDATE and DELETE, on MySQL and
-- MariaDB.
--
-- {guard} is a label by which guards are found. {locks} is the table of locks, {lock} the name of the
-- lock and {message} the message of a refusal, both as hexadecimal literals; {collation} is that of
-- the names. {look} and {check} are the statements below.
--
-- The check locks the row, and in REPEATABLE READ, if there is no such row, also the gap that new names
-- would be inserted into. So it is made only after a look that locks nothing has found the grant. The
-- look reads the transaction's snapshot, and so refuses one that is older than the grant. It is made
-- once in a session for a ticket, and never decides alone that a write passes: {seen} is the table of
-- locks and the lock, as a hexadecimal literal.
{guard}: BEGIN
    DECLARE dl_held BIGINT DEFAULT NULL;
    DECLARE dl_seen BOOLEAN DEFAULT FALSE;
    DECLARE dl_message VARCHAR(128) CHARACTER SET utf8mb4 DEFAULT CONVERT({message} USING utf8mb4);
    DECLARE CONTINUE HANDLER FOR NOT FOUND BEGIN END;
    IF @database_locks_ticket IS NOT NULL THEN
        SET dl_seen = @database_locks_seen <=> CONCAT({seen}, @database_locks_ticket);
        IF NOT dl_seen THEN
            {look}
            IF dl_held IS NOT NULL THEN
                SET dl_held = NULL, dl_seen = TRUE,
                    @database_locks_seen = CONCAT({seen}, @database_locks_ticket);
            END IF;
        END IF;
        IF dl_seen THEN
            {check}
        END IF;
    END IF;
    IF dl_held IS NULL THEN
        SIGNAL SQLSTATE 'DL001' SET MESSAGE_TEXT = dl_message, MYSQL_ERRNO = 1644;
    END IF;
END
