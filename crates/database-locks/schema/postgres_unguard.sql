-- Removes the guard of a table, for PostgreSQL 12 and later: the triggers of the table and of all
-- its parts; of a part those alone that are of another lock than its parent's. The trigger function
-- stays.
--
-- `dblock unguard` and `locks.unguard_table()` run exactly this. The placeholders are those of
-- postgres_guard.sql; {home} is the schema of the table of locks with a dot, if its name has one. The
-- setting database_locks.guard_result is the number of tables, parts included, that had one.

DO $remove$
DECLARE
    wanted   text := {of_table};
    locks    regclass := to_regclass('{table}');
    target   regclass;
    guard    regprocedure;
    one      record;
    parent   regclass;
    triggers oid[];
    had      oid[];
    todo     text[];
    command  text;
    patience text := current_setting('lock_timeout');
    deadline timestamptz;
BEGIN
    -- As in postgres_guard.sql.
    IF patience = '0' THEN
        PERFORM set_config('lock_timeout', '5s', true);
    END IF;
    SELECT clock_timestamp() + setting::int * interval '1 ms' INTO deadline
      FROM pg_settings WHERE name = 'lock_timeout';
    BEGIN
        target := to_regclass(wanted);
    EXCEPTION WHEN syntax_error OR invalid_name OR feature_not_supported THEN
        target := NULL;
    END;
    IF target IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = 'there is no table ' || wanted;
    END IF;
    SELECT to_regprocedure(format('%I.%I()', n.nspname, '{guard}')) INTO guard
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = locks;
    IF locks IS NULL THEN
        -- The function outlives the table of locks. Every write fails then.
        guard := to_regprocedure('{home}"{guard}"()');
    END IF;
    -- Read once more behind the locks: another client may have guarded a part meanwhile.
    FOR round IN 1..2 LOOP
    WITH RECURSIVE tree AS (SELECT target::oid AS id, 0 AS depth
        UNION SELECT i.inhrelid, depth + 1 FROM tree JOIN pg_inherits i ON i.inhparent = tree.id)
    SELECT array_agg(t.oid ORDER BY tree.depth, tree.id), coalesce(array_agg(DISTINCT tree.id), ARRAY[]::oid[])
      INTO triggers, had
      FROM tree JOIN pg_trigger t ON t.tgrelid = tree.id AND t.tgfoid = guard
     WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_trigger p ON p.tgrelid = i.inhparent
        WHERE i.inhrelid = target AND p.tgfoid = guard AND p.tgargs = t.tgargs);
    SELECT c.oid::regclass AS name INTO one FROM pg_class c
     WHERE c.oid = ANY (had) AND NOT pg_has_role(c.relowner, 'USAGE') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002',
            MESSAGE = format('the role %I does not own %s', current_user, one.name),
            HINT = 'only its owner may remove a trigger';
    END IF;
    EXIT WHEN round = 2;
    -- First the locks, within the limit. The order is that of the parents. A foreign table cannot be locked,
    -- nor a table whose owner revoked its own rights to write.
    SELECT array_agg(format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', c.oid::regclass) ORDER BY o.place) INTO todo
      FROM (SELECT t.tgrelid AS id, min(array_position(triggers, t.oid)) AS place
          FROM pg_trigger t WHERE t.oid = ANY (triggers) GROUP BY 1) o JOIN pg_class c ON c.oid = o.id
     WHERE c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE');
    FOREACH command IN ARRAY coalesce(todo, ARRAY[]::text[]) LOOP
        PERFORM set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch
            FROM deadline - clock_timestamp())))::int::text, true);
        EXECUTE command;
    END LOOP;
    END LOOP;
    FOR one IN
        SELECT t.oid, t.tgname, t.tgrelid::regclass AS name FROM pg_trigger t
         WHERE t.oid = ANY (triggers) ORDER BY array_position(triggers, t.oid)
    LOOP
        -- The clones of a row trigger are gone with that of the root.
        IF EXISTS (SELECT FROM pg_trigger t WHERE t.oid = one.oid) THEN
            EXECUTE format('DROP TRIGGER %I ON %s', one.tgname, one.name);
        END IF;
    END LOOP;
    SELECT i.inhparent::regclass INTO parent FROM pg_inherits i
      JOIN pg_trigger t ON t.tgrelid = i.inhparent AND t.tgfoid = guard
     WHERE i.inhrelid = target AND cardinality(had) = 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = format('%s is a part of %s, which is guarded', target, parent),
            HINT = format('`dblock unguard %s`', parent);
    END IF;
    PERFORM set_config('database_locks.guard_result', cardinality(had)::text, true);
    PERFORM set_config('lock_timeout', patience, true);
EXCEPTION WHEN lock_not_available OR undefined_table THEN
    -- Also if the table, or a part of it, was dropped or renamed while this waited.
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
        MESSAGE = format('transactions that use the table %s, or a part of it, keep it busy', wanted),
        HINT = 'its guard is still there; try again';
END
$remove$;
