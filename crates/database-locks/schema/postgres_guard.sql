-- Puts a table under the guard of a lock, for PostgreSQL 12 and later.
--
-- `dblock guard` and `locks.guard_table()` run exactly this, with the name of the table of locks in
-- place of {table}, that of the trigger function in place of {guard}, and its body (see
-- postgres_guard_function.sql) between $body$. The table and the lock stand in it once, as literals;
-- the server quotes the identifiers. A second run changes nothing, and covers partitions that were
-- added meanwhile.

DO $install$
DECLARE
    wanted   text := {of_table};
    of_lock  text := {of_lock};
    locks    regclass := to_regclass('{table}');
    target   regclass;
    home     text;
    body     text;
    guard    regprocedure;
    trigger  text := '{trigger}';
    member   record;
    existing record;
    class    record;
BEGIN
    IF locks IS NULL THEN
        RAISE EXCEPTION 'there is no table {table} of locks' USING ERRCODE = 'undefined_table';
    END IF;
    BEGIN
        target := to_regclass(wanted);
    EXCEPTION WHEN syntax_error OR invalid_name OR feature_not_supported THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = wanted || ' is not the name of a table',
            HINT = 'TABLE or SCHEMA.TABLE, in double quotes if it has capitals or other characters: "Invoices"';
    END;
    IF target IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = 'there is no table ' || wanted,
            HINT = CASE WHEN wanted <> lower(wanted)
                THEN 'a name with capitals stands in double quotes: "Invoices"'
                ELSE 'SCHEMA.TABLE, if the schema is not on the search_path' END;
    END IF;
    SELECT c.relkind, c.relpersistence, c.relispartition, c.relname, n.nspname INTO class
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target;
    IF target IN (locks, to_regclass('{permits}')) THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = target::text || ' is the table of the locks',
            HINT = 'every acquire writes to it, so it cannot be guarded';
    ELSIF class.relkind = 'v' OR class.relkind = 'm' THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = target::text || ' is a view',
            HINT = 'guard the tables that it is made of';
    ELSIF class.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = target::text || ' is not a table of this database';
    ELSIF class.relpersistence = 't' THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = target::text || ' is a temporary table',
            HINT = 'no other session can write to it';
    ELSIF class.nspname IN ('pg_catalog', 'information_schema') THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002', MESSAGE = target::text || ' is a table of the server';
    END IF;
    SELECT i.inhparent::regclass AS parent INTO existing FROM pg_inherits i
     WHERE i.inhrelid = target LIMIT 1;
    IF FOUND THEN
        -- A write through the parent fires no statement trigger of this one.
        RAISE EXCEPTION USING ERRCODE = 'DL002',
            MESSAGE = format('%s is a part of %s', target, existing.parent),
            HINT = format('guard %s, which covers all its parts', existing.parent);
    END IF;
    FOR member IN
        WITH RECURSIVE tree AS (SELECT target::oid AS id
            UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.id)
        SELECT id::regclass AS name FROM tree
    LOOP
        IF NOT has_table_privilege(member.name, 'TRIGGER') THEN
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('the role %I may not create a trigger on %s', current_user, member.name),
                HINT = format('as its owner: GRANT TRIGGER ON %s TO %I', member.name, current_user);
        END IF;
    END LOOP;

    -- The function, with the rights of its owner: who writes needs none on the table of locks.
    SELECT format('%I.%I', n.nspname, c.relname), quote_ident(n.nspname) INTO body, home
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = locks;
    body := replace($body${body}$body$, '[locks]', body);
    guard := to_regprocedure(format('%s.%I()', home, '{guard}'));
    IF NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = guard AND p.prosrc = body AND p.prosecdef
                      AND p.proconfig = ARRAY['search_path=pg_catalog, pg_temp']) THEN
        IF NOT has_table_privilege(locks, 'SELECT') OR NOT has_any_column_privilege(locks, 'UPDATE') THEN
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('the role %I lacks SELECT or UPDATE on %s', current_user, locks),
                HINT = 'the trigger function reads and locks its rows with the rights of its owner';
        ELSIF guard IS NULL AND NOT has_schema_privilege(home, 'CREATE') THEN
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('the role %I may not create the trigger function in the schema %s', current_user, home),
                HINT = 'run the first `dblock guard` as the owner of the table of locks';
        ELSIF guard IS NOT NULL AND NOT (SELECT pg_has_role(p.proowner, 'USAGE') FROM pg_proc p WHERE p.oid = guard) THEN
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('the function %s is of another version, and the role %I does not own it', guard, current_user),
                HINT = 'run `dblock guard` as its owner, which replaces it';
        END IF;
        EXECUTE format('CREATE OR REPLACE FUNCTION %s.%I() RETURNS trigger LANGUAGE plpgsql
            SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS %L', home, '{guard}', body);
        guard := to_regprocedure(format('%s.%I()', home, '{guard}'));
    END IF;

    SELECT t.tgrelid::regclass AS relation,
           convert_from(substring(t.tgargs FROM 1 FOR octet_length(t.tgargs) - 1), getdatabaseencoding()) AS lock
      INTO existing
      FROM pg_trigger t WHERE t.tgrelid = target AND t.tgfoid = guard
       AND convert_from(substring(t.tgargs FROM 1 FOR octet_length(t.tgargs) - 1), getdatabaseencoding()) <> of_lock
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'DL002',
            MESSAGE = format('%s is guarded by the lock "%s" already', target, existing.lock),
            HINT = format('first `dblock unguard %s`', target);
    END IF;

    -- A statement trigger for the table and each of its parts. It costs nothing for each row.
    FOR member IN
        WITH RECURSIVE tree AS (SELECT target::oid AS id
            UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.id)
        SELECT id::regclass AS name, t.tgenabled FROM tree LEFT JOIN pg_trigger t
            ON t.tgrelid = tree.id AND t.tgfoid = guard AND t.tgtype & 1 = 0
    LOOP
        IF member.tgenabled IS NULL THEN
            EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION %s(%L)', trigger, member.name, guard::regproc, of_lock);
        ELSIF member.tgenabled NOT IN ('O', 'A') THEN
            EXECUTE format('ALTER TABLE ONLY %s ENABLE TRIGGER %I', member.name, trigger);
        END IF;
    END LOOP;

    -- PostgreSQL clones a row trigger to each later partition, and no statement trigger. Where there
    -- is a statement trigger, the clone is disabled.
    IF class.relkind = 'p' THEN
        IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = target AND t.tgfoid = guard AND t.tgtype & 1 = 1) THEN
            EXECUTE format('CREATE TRIGGER %I AFTER INSERT OR UPDATE OR DELETE ON %s
                FOR EACH ROW EXECUTE FUNCTION %s(%L)', trigger || '_row', target, guard::regproc, of_lock);
        END IF;
        FOR member IN
            SELECT p.relid AS name FROM pg_partition_tree(target) p
              JOIN pg_class c ON c.oid = p.relid
              JOIN pg_trigger t ON t.tgrelid = p.relid AND t.tgfoid = guard AND t.tgtype & 1 = 1
             WHERE p.isleaf AND t.tgenabled <> 'D' AND pg_has_role(c.relowner, 'USAGE')
        LOOP
            EXECUTE format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', member.name, trigger || '_row');
        END LOOP;
    END IF;
END
$install$;
