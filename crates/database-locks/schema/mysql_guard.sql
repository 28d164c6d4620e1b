-- The body of the three triggers of a guarded table, BEFORE INSERT, UPDATE and DELETE, on MySQL and
-- MariaDB.
--
-- {guard} is a label by which guards are found. {locks} is the table of locks, {lock} the name of the
-- lock and {message} the message of a refusal, both as hexadecimal literals; {collation} is that of
-- the names. {check} is one of the two statements below.
{guard}: BEGIN
    DECLARE dl_held BIGINT DEFAULT NULL;
    DECLARE dl_message VARCHAR(128) CHARACTER SET utf8mb4 DEFAULT CONVERT({message} USING utf8mb4);
    DECLARE CONTINUE HANDLER FOR NOT FOUND BEGIN END;
    IF @database_locks_ticket IS NOT NULL THEN
        {check}
    END IF;
    IF dl_held IS NULL THEN
        SIGNAL SQLSTATE 'DL001' SET MESSAGE_TEXT = dl_message, MYSQL_ERRNO = 1644;
    END IF;
END
