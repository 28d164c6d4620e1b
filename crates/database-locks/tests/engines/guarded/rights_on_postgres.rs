//! Rights on PostgreSQL, and attempts to get past a guard by them.

use database_locks::Locks;
use testkit::{TestDb, db_tests, promise};

use super::{WRITES, Writer, guarded, ledger};

/// Functions and operators of the same names, tables in its own schema, a temporary table: none is
/// called instead.
async fn a_search_path_fools_no_guard(db: &TestDb) {
    let locks = guarded(db).await;
    // Another client holds it.
    let _guard = ledger(&locks).await;
    let user = format!("mallory_{}", db.url.rsplit('/').next().unwrap());
    db.sql(&format!(
        "CREATE ROLE {user} LOGIN; CREATE SCHEMA {user} AUTHORIZATION {user}; \
         GRANT INSERT, UPDATE, DELETE, SELECT ON invoices TO {user}; \
         GRANT TEMPORARY ON DATABASE {} TO {user}",
        db.url.rsplit('/').next().unwrap()
    ));
    let mut writer = Writer::new(db);
    writer.run(&format!("SET SESSION AUTHORIZATION {user}"));
    writer.run(&format!("SET search_path = {user}, pg_catalog, public"));
    for lie in [
        "CREATE FUNCTION strpos(text, text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION strpos(text, character) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION length(character) RETURNS int LANGUAGE sql AS 'SELECT 32'",
        "CREATE FUNCTION current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
        "CREATE FUNCTION true_(anyelement, anyelement) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE TABLE database_locks_lock (name text, grant_id char(32), granted_until timestamptz, \
            expires_at timestamptz, locked_by text)",
        "INSERT INTO database_locks_lock VALUES ('ledger', 'x', now(), now(), 'me')",
        "CREATE TEMPORARY TABLE database_locks_lock (LIKE database_locks_lock)",
        "INSERT INTO pg_temp.database_locks_lock VALUES ('ledger', repeat('a', 32), now(), now(), 'me')",
        "CREATE FUNCTION text_true(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = text_true)",
    ] {
        writer.run(lie);
    }
    for ticket in ["x", &"a".repeat(32)] {
        writer.run(&format!("SET database_locks.ticket = '{ticket}'"));
        writer.is_refused("UPDATE public.invoices SET amount = 1");
        writer.is_refused("INSERT INTO public.invoices VALUES (77, 1)");
    }
    // Nor can it remove the guard, or replace its function.
    for change in [
        "DROP TRIGGER database_locks_guard ON public.invoices",
        "ALTER TABLE public.invoices DISABLE TRIGGER ALL",
        "DROP FUNCTION public.database_locks_guard()",
        "CREATE OR REPLACE FUNCTION public.database_locks_guard() RETURNS trigger LANGUAGE plpgsql AS \
            'BEGIN RETURN NULL; END'",
        "SET session_replication_role = replica",
    ] {
        let refused = writer.session.run(change).unwrap_err().to_string();
        assert!(
            refused.contains("must be owner") || refused.contains("permission denied"),
            "{refused}"
        );
    }
    promise("P16", db.engine);
}

/// And the role can guard once it has them all.
async fn each_missing_right_is_named(db: &TestDb, of_owner: &Locks, owner: &str) {
    let mut refusals = Vec::new();
    for grant in [
        format!("GRANT SELECT, UPDATE ON database_locks_lock TO {owner}"),
        format!("GRANT CREATE ON SCHEMA public TO {owner}"),
        format!("GRANT TRIGGER ON invoices TO {owner}"),
    ] {
        let refused = of_owner
            .guard_table("invoices", "ledger")
            .await
            .unwrap_err();
        refusals.push(refused.chain());
        db.sql(&grant);
    }
    assert!(
        refusals[0].contains("lacks SELECT or UPDATE on database_locks_lock"),
        "{refusals:?}"
    );
    assert!(
        refusals[1].contains("may not create the trigger function"),
        "{refusals:?}"
    );
    assert!(
        refusals[2].contains("may not create a trigger on invoices"),
        "{refusals:?}"
    );
    assert!(
        refusals[2].contains("GRANT TRIGGER ON invoices TO"),
        "{refusals:?}"
    );
    of_owner.guard_table("invoices", "ledger").await.unwrap();
}

/// A writer needs no right on the table of locks, and a role that guards only those that the error
/// names.
async fn least_privilege_is_enough(db: &TestDb) {
    let locks = db.locks().await;
    let database = db.url.rsplit('/').next().unwrap();
    let (owner, clerk) = (format!("owner_{database}"), format!("writer_{database}"));
    db.sql(&format!(
        "CREATE ROLE {owner} LOGIN; CREATE ROLE {clerk} LOGIN; \
         REVOKE ALL ON SCHEMA public FROM PUBLIC; \
         GRANT USAGE ON SCHEMA public TO {owner}, {clerk}; \
         CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL); \
         INSERT INTO invoices VALUES (1, 10), (2, 20); \
         GRANT SELECT, INSERT, UPDATE, DELETE ON invoices TO {clerk}"
    ));
    let url = db.url.replace("postgres@", &format!("{owner}@"));
    let of_owner = Locks::connect(&url).await.unwrap();
    each_missing_right_is_named(db, &of_owner, &owner).await;
    // Another one that guards a table later needs no more than the right to its triggers.
    db.sql(&format!(
        "CREATE TABLE other (id int); GRANT TRIGGER ON other TO {clerk}"
    ));
    let url = db.url.replace("postgres@", &format!("{clerk}@"));
    let of_clerk = Locks::connect(&url).await.unwrap();
    of_clerk.guard_table("other", "ledger").await.unwrap();
    let refused = of_clerk.unguard_table("other").await.unwrap_err().chain();
    assert!(
        refused.contains("does not own other; only its owner"),
        "{refused}"
    );

    let guard = ledger(&locks).await;
    let mut writer = Writer::new(db);
    writer.run(&format!("SET SESSION AUTHORIZATION {clerk}"));
    assert!(
        writer
            .session
            .run("SELECT * FROM database_locks_lock")
            .is_err()
    );
    let message = writer.is_refused(WRITES[1]);
    assert!(message.contains(guard.holder()), "{message}");
    writer
        .run_with(&guard.ticket().to_string(), WRITES[1])
        .unwrap();
    // The function's owner has lost its rights: refused, and found.
    db.sql(&format!(
        "REVOKE UPDATE ON database_locks_lock FROM {owner}"
    ));
    assert!(
        writer
            .run_with(&guard.ticket().to_string(), WRITES[1])
            .is_err()
    );
    let found = locks.guarded_tables().await.unwrap();
    assert!(
        found[0].gaps[0].contains("lacks SELECT or UPDATE on the table"),
        "{found:?}"
    );
    promise("P16", db.engine);
}

/// What an owner or an administrator can do is found.
async fn a_guard_that_is_switched_off_is_found(db: &TestDb) {
    let locks = guarded(db).await;
    let gaps = async || locks.guarded_tables().await.unwrap()[0].gaps.join("; ");
    assert_eq!(gaps().await, "");
    for mode in ["DISABLE", "ENABLE REPLICA"] {
        db.sql(&format!(
            "ALTER TABLE invoices {mode} TRIGGER database_locks_guard"
        ));
        assert_eq!(
            gaps().await,
            "the trigger of invoices is missing, disabled or was changed",
            "{mode}"
        );
        Writer::new(db).run("UPDATE invoices SET amount = amount");
        locks.guard_table("invoices", "ledger").await.unwrap();
        assert_eq!(gaps().await, "", "{mode}");
        Writer::new(db).is_refused(WRITES[0]);
    }
    db.sql(
        "CREATE OR REPLACE FUNCTION database_locks_guard() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN NULL; END'",
    );
    assert!(
        gaps().await.contains("of another version"),
        "{}",
        gaps().await
    );
    Writer::new(db).run("UPDATE invoices SET amount = amount");
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(gaps().await, "");
    Writer::new(db).is_refused(WRITES[0]);
    // Replication's workers pass, as does an administrator who says so.
    let mut writer = Writer::new(db);
    writer.run("SET session_replication_role = replica");
    writer.run("UPDATE invoices SET amount = amount");
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        a_search_path_fools_no_guard,
        least_privilege_is_enough,
        a_guard_that_is_switched_off_is_found,
    ); )* };
}
on!(
    postgres,
    #[ignore = "make prove"]
    postgres12
);

mod on_version_18 {
    use super::*;
    testkit::db_tests!(#[ignore = "make prove"] postgres18:
        a_search_path_fools_no_guard,
        a_guard_that_is_switched_off_is_found,
    );
}
