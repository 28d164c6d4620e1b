//! Every clause of the store contract, on every engine.

use testkit::{TestDb, contract_tests};

contract_tests!(memory, TestDb::memory());
contract_tests!(sqlite, TestDb::sqlite());
contract_tests!(
    memory_direct,
    TestDb::memory().map(TestDb::with_direct_connection)
);
contract_tests!(
    sqlite_direct,
    TestDb::sqlite().map(TestDb::with_direct_connection)
);
contract_tests!(postgres, TestDb::postgres());
contract_tests!(
    #[ignore = "make prove"]
    postgres18,
    TestDb::postgres18()
);
contract_tests!(
    #[ignore = "make prove"]
    postgres12,
    TestDb::postgres12()
);
contract_tests!(
    postgres_direct,
    TestDb::postgres().map(TestDb::with_direct_connection)
);
contract_tests!(
    pgbouncer_direct,
    TestDb::pgbouncer().map(TestDb::with_direct_connection)
);
contract_tests!(pgbouncer, TestDb::pgbouncer());
contract_tests!(mariadb, TestDb::mariadb());
contract_tests!(mysql, TestDb::mysql());
contract_tests!(
    mariadb_direct,
    TestDb::mariadb().map(TestDb::with_direct_connection)
);
contract_tests!(
    mysql_direct,
    TestDb::mysql().map(TestDb::with_direct_connection)
);
contract_tests!(
    #[ignore = "make prove"]
    postgres_odd,
    TestDb::postgres_odd()
);
contract_tests!(
    #[ignore = "make prove"]
    mariadb_odd,
    TestDb::mariadb_odd()
);
contract_tests!(
    #[ignore = "make prove"]
    mysql_odd,
    TestDb::mysql_odd()
);
contract_tests!(
    #[ignore = "make prove"]
    postgres_repeatable_read,
    TestDb::postgres_isolated("repeatable read"),
    contending_clients_hold_a_lock_one_at_a_time,
    first_use_by_twenty_at_once_has_one_winner,
    an_expired_lease_has_one_successor,
);
contract_tests!(
    #[ignore = "make prove"]
    postgres_serializable,
    TestDb::postgres_isolated("serializable"),
    contending_clients_hold_a_lock_one_at_a_time,
);
