-- Puts a table under the guard of a lock, for PostgreSQL 12 and later.
--
-- `dblock guard` and `locks.guard_table()` run exactly this, with the name of the table of locks in
-- place of {table}, that of the trigger function in place of {guard}, and its body (see
-- postgres_guard_function.sql) between $body$. The table and the lock stand in it once, as literals;
-- the server quotes the identifiers. A second run changes what is missing, disabled or was changed, and
-- covers partitions that were added meanwhile; it locks nothing if there are none of these. In a
-- transaction above READ COMMITTED, parts that its snapshot does not have are not covered.

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
    patience text := current_setting('lock_timeout');
    deadline timestamptz;
    tree     oid[];
    locked   oid[] := ARRAY[]::oid[];
    todo     text[];
    command  text;
    member   record;
    existing record;
    class    record;
BEGIN
    -- The statements below wait for the transactions that write, and all later ones wait behind them.
    -- The limit is for all waits together, since the locks are kept to the end. Where the whole is
    -- tried again, it is shorter, and was set before.
    IF patience = '0' THEN
        PERFORM set_config('lock_timeout', '5s', true);
    END IF;
    SELECT clock_timestamp() + setting::int * interval '1 ms' INTO deadline
      FROM pg_settings WHERE name = 'lock_timeout';
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

    -- In each round: what is lacking, and the statements that add it. Before the first of them the table
    -- and its parts are locked, and read again, since parts may have been added until then. A role with
    -- the right TRIGGER alone may not lock them: the creation of each trigger waits instead. At last
    -- nothing is lacking.
    LOOP
        todo := ARRAY[]::text[];
        SELECT i.inhparent::regclass AS parent INTO existing FROM pg_inherits i
         WHERE i.inhrelid = target LIMIT 1;
        IF FOUND THEN
            -- A write through the parent fires no statement trigger of this one.
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('%s is a part of %s', target, existing.parent),
                HINT = format('guard %s, which covers all its parts', existing.parent);
        END IF;
        WITH RECURSIVE part AS (SELECT c.oid AS id FROM pg_class c WHERE c.oid = target
            UNION SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.id)
        SELECT array_agg(id) INTO tree FROM part;
        IF tree IS NULL THEN
            RAISE lock_not_available;  -- It was dropped while this waited.
        END IF;
        FOR member IN SELECT c.oid::regclass AS name, c.relkind FROM pg_class c WHERE c.oid = ANY (tree) LOOP
            IF member.relkind = 'f' THEN
                RAISE EXCEPTION USING ERRCODE = 'DL002',
                    MESSAGE = format('%s, a part of %s, is a foreign table', member.name, target),
                    HINT = 'no trigger here sees what is written at its own server: detach it';
            ELSIF NOT has_table_privilege(member.name, 'TRIGGER') THEN
                RAISE EXCEPTION USING ERRCODE = 'DL002',
                    MESSAGE = format('the role %I may not create a trigger on %s', current_user, member.name),
                    HINT = format('as its owner: GRANT TRIGGER ON %s TO %I', member.name, current_user);
            END IF;
        END LOOP;
        SELECT t.tgrelid::regclass AS relation, a.lock INTO existing
          FROM pg_trigger t, LATERAL (SELECT CASE WHEN t.tgnargs = 1 THEN convert_from(substring(t.tgargs
            FROM 1 FOR octet_length(t.tgargs) - 1), getdatabaseencoding()) END AS lock) a
         WHERE t.tgrelid = ANY (tree) AND t.tgfoid = guard AND a.lock <> of_lock
         ORDER BY array_position(tree, t.tgrelid) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'DL002',
                MESSAGE = format('%s is guarded by the lock "%s" already', existing.relation, existing.lock),
                HINT = format('first `dblock unguard %s`', existing.relation);
        END IF;

        -- A statement trigger for the table and each of its parts, BEFORE INSERT, DELETE, UPDATE and
        -- TRUNCATE (in pg_trigger 2 + 4 + 8 + 16 + 32). It costs nothing for each row. PostgreSQL clones
        -- no statement trigger to a later partition, but a row trigger (1 + 4 + 8 + 16), which the table
        -- and its parts with partitions have besides.
        FOR member IN
            SELECT w.*, w.id::regclass AS name FROM (
                SELECT id, 62 AS kind, left(trigger, 56) AS stem, ARRAY[id] AS has, ARRAY[id] AS named
                  FROM unnest(tree) id
                UNION ALL
                SELECT target, 29, left(trigger, 56) || '_row', array_agg(c.oid), tree FROM pg_class c
                 WHERE c.oid = ANY (tree) AND c.relkind = 'p' HAVING class.relkind = 'p') w
             WHERE EXISTS (SELECT FROM unnest(w.has) id WHERE NOT EXISTS (
                SELECT FROM pg_trigger t WHERE t.tgrelid = id AND t.tgfoid = guard AND t.tgtype = w.kind
                   AND t.tgnargs = 1 AND t.tgenabled IN ('O', 'A') AND t.tgqual IS NULL AND t.tgattr::text = ''))
        LOOP
            -- What is there is disabled, or was changed. The next round replaces it.
            FOR existing IN
                SELECT t.tgname, pg_has_role(c.relowner, 'USAGE') AS is_owner
                  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                 WHERE t.tgrelid = member.id AND t.tgfoid = guard AND t.tgtype & 1 = member.kind & 1
            LOOP
                IF NOT existing.is_owner THEN
                    RAISE EXCEPTION USING ERRCODE = 'DL002',
                        MESSAGE = format('the trigger %I of %s is disabled or was changed, and the role %I does not own it',
                            existing.tgname, member.name, current_user),
                        HINT = 'only its owner may replace the trigger';
                END IF;
                todo := todo || format('DROP TRIGGER %I ON %s', existing.tgname, member.name);
            END LOOP;
            CONTINUE WHEN FOUND;
            SELECT free.name INTO existing
              FROM generate_series(1, 9) i, concat(member.stem, CASE WHEN i > 1 THEN '_' || i END) AS free (name)
             WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = ANY (member.named) AND t.tgname = free.name)
             ORDER BY i LIMIT 1;
            IF NOT FOUND THEN
                RAISE EXCEPTION USING ERRCODE = 'DL002',
                    MESSAGE = format('%s or its parts have other triggers named %s, %2$s_2 and so on to %2$s_9', member.name, member.stem),
                    HINT = 'rename one of them';
            END IF;
            todo := todo || format('CREATE TRIGGER %I %s ON %s FOR EACH %s EXECUTE FUNCTION %s(%L)', existing.name,
                CASE member.kind WHEN 29 THEN 'AFTER INSERT OR UPDATE OR DELETE'
                    ELSE 'BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE' END, member.name,
                CASE member.kind WHEN 29 THEN 'ROW' ELSE 'STATEMENT' END, guard::regproc, of_lock);
        END LOOP;

        -- Besides, once nothing is lacking: triggers that name no lock, or more than one. The clones of a
        -- row trigger are gone with that of the parent.
        IF cardinality(todo) = 0 THEN
            SELECT coalesce(array_agg(format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass)), ARRAY[]::text[]) INTO todo
              FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
             WHERE t.tgrelid = ANY (tree) AND t.tgfoid = guard AND t.tgnargs <> 1 AND pg_has_role(c.relowner, 'USAGE')
               AND NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_trigger p ON p.tgrelid = i.inhparent
                WHERE i.inhrelid = t.tgrelid AND p.tgfoid = guard AND p.tgnargs <> 1);
        END IF;
        -- Each partition now has a statement trigger of this lock, which makes the clone needless.
        IF cardinality(todo) = 0 THEN
            SELECT coalesce(array_agg(format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', t.tgrelid::regclass, t.tgname)), ARRAY[]::text[]) INTO todo
              FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid
             WHERE c.oid = ANY (tree) AND c.relkind = 'r' AND t.tgfoid = guard AND t.tgtype & 1 = 1
               AND t.tgenabled <> 'D' AND pg_has_role(c.relowner, 'USAGE');
        END IF;

        EXIT WHEN cardinality(todo) = 0;
        IF NOT tree <@ locked THEN
            SELECT coalesce(array_agg(format('LOCK TABLE ONLY %I.%I IN SHARE ROW EXCLUSIVE MODE', n.nspname, c.relname)
                    ORDER BY array_position(tree, c.oid)), ARRAY[]::text[]) INTO todo
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = ANY (tree) AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE');
            locked := locked || tree;
        END IF;
        FOREACH command IN ARRAY todo LOOP
            PERFORM set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch
                FROM deadline - clock_timestamp())))::int::text, true);
            EXECUTE command;
        END LOOP;
    END LOOP;
    PERFORM set_config('lock_timeout', patience, true);
EXCEPTION WHEN lock_not_available OR undefined_table THEN
    IF locks IS NULL THEN
        RAISE;
    END IF;
    -- Also if the table, or a part of it, was dropped or renamed while this waited.
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
        MESSAGE = format('transactions that use the table %s, or a part of it, keep it busy', wanted),
        HINT = 'it was not guarded; try again';
END
$install$;
