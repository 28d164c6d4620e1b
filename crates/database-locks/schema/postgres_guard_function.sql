-- The body of the trigger function of guarded tables, for PostgreSQL 12 and later. [locks] stands for
-- the table of locks with its schema.
--
-- It passes if the transaction shows the grant that holds the lock, which it then locks as a fence
-- does: no other client gets the lock before the transaction has ended. Nothing is remembered, since
-- a rollback to a savepoint removes the row lock. Whether the lease has ended is not tested: the row
-- lock proves that no later grant was made. An empty grant id would be found in any ticket.
DECLARE
    shown text := coalesce(current_setting('database_locks.ticket', true), '');
    held  record;
BEGIN
    IF shown <> '' THEN
        PERFORM 1 FROM [locks] l
          WHERE l.name = TG_ARGV[0] AND length(l.grant_id) = 32 AND strpos(shown, l.grant_id) > 0
            AND l.granted_until = l.expires_at
            FOR KEY SHARE;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    -- How it stands, as `dblock list` says it; a lock that was ever shared may have shared holders, whose
    -- rows are in a table that the owner of this function may not be able to read.
    SELECT l.locked_by, s.live AND NOT s.rests AS live, CASE WHEN s.live THEN 'resting'
           WHEN l.shared THEN 'free or shared' ELSE 'free' END AS state INTO held
      FROM [locks] l, LATERAL (SELECT l.expires_at > clock_timestamp() AS live,
           l.grant_id IS NULL AND l.granted_until IS NOT DISTINCT FROM l.expires_at AS rests) s
     WHERE l.name = TG_ARGV[0];
    RAISE EXCEPTION USING ERRCODE = 'DL001',
        MESSAGE = concat(
            'table ', CASE WHEN length(TG_TABLE_NAME) > 24 THEN left(TG_TABLE_NAME, 21) || '...'
                      ELSE TG_TABLE_NAME END,
            ' is guarded by lock "', CASE WHEN length(TG_ARGV[0]) > 30
                THEN left(TG_ARGV[0], 27) || '...' ELSE TG_ARGV[0] END, '", ',
            CASE WHEN held.live THEN 'held by ' || CASE WHEN length(held.locked_by) > 34
                THEN left(held.locked_by, 31) || '...' ELSE coalesce(held.locked_by, '?') END
            ELSE 'which is ' || coalesce(held.state, 'free') END),
        DETAIL = concat('The transaction does not hold the lock "', TG_ARGV[0], '" that guards ',
            TG_TABLE_SCHEMA, '.', TG_TABLE_NAME, CASE WHEN held.live
            THEN '; it is held by ' || coalesce(held.locked_by, '?') END, '.'),
        HINT = CASE WHEN shown = ''
            THEN 'It shows no ticket: use a fence of the lock, held.atomic(), or dblock run --pgoptions.'
            ELSE 'The ticket that it shows is not of the present grant, or its snapshot is older than the grant.'
            END,
        SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
END
