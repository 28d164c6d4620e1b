-- Removes the guard of a table, for PostgreSQL 12 and later: the triggers of the table and of all
-- its parts; of a part those alone that are of another lock than its parent's. The trigger function
-- stays.
--
-- `dblock unguard` and `locks.unguard_table()` run exactly this. The placeholders are those of
-- postgres_guard.sql. The setting database_locks.guard_result is the number of tables, parts
-- included, that had one.

DO $remove$
DECLARE
    wanted   text := {of_table};
    locks    regclass := to_regclass('{table}');
    target   regclass;
    guard    regprocedure;
    one      record;
    parent   regclass;
    had      oid[] := ARRAY[]::oid[];
    patience text := current_setting('lock_timeout');
BEGIN
    -- As in postgres_guard.sql.
    IF patience = '0' THEN
        PERFORM set_config('lock_timeout', '5s', true);
    END IF;
    IF locks IS NULL THEN
        RAISE EXCEPTION 'there is no table {table} of locks' USING ERRCODE = 'undefined_table';
    END IF;
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
    FOR one IN
        WITH RECURSIVE tree AS (SELECT target::oid AS id, 0 AS depth
            UNION SELECT i.inhrelid, depth + 1 FROM tree JOIN pg_inherits i ON i.inhparent = tree.id)
        SELECT tree.id, tree.id::regclass AS name, t.tgname, pg_has_role(c.relowner, 'USAGE') AS is_owner
          FROM tree JOIN pg_class c ON c.oid = tree.id
          JOIN pg_trigger t ON t.tgrelid = tree.id AND t.tgfoid = guard
         WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_trigger p ON p.tgrelid = i.inhparent
            WHERE i.inhrelid = target AND p.tgfoid = guard AND p.tgargs = t.tgargs)
         ORDER BY tree.depth
    LOOP
        IF NOT one.is_owner THEN
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('the role %I does not own %s', current_user, one.name),
                HINT = 'only its owner may remove a trigger';
        END IF;
        -- The clones of a row trigger are gone with that of the root.
        IF EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = one.id AND t.tgname = one.tgname) THEN
            EXECUTE format('DROP TRIGGER %I ON %s', one.tgname, one.name);
        END IF;
        IF one.id <> ALL (had) THEN
            had := had || one.id;
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
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
        MESSAGE = format('transactions that use the table %s, or a part of it, keep it busy', wanted),
        HINT = 'its guard is still there; try again';
END
$remove$;
