//! Every clause of the store contract, on every engine.

use testkit::contract::DirectLab;
use testkit::{Lab, contract_tests};

contract_tests!(memory, Lab::memory());
contract_tests!(sqlite, Lab::sqlite());
contract_tests!(memory_direct, Lab::memory().map(DirectLab));
contract_tests!(sqlite_direct, Lab::sqlite().map(DirectLab));
contract_tests!(postgres, Lab::postgres());
contract_tests!(
    #[ignore = "make prove"]
    postgres18,
    Lab::postgres18()
);
contract_tests!(postgres_direct, Lab::postgres().map(DirectLab));
contract_tests!(pgbouncer_direct, Lab::pgbouncer().map(DirectLab));
contract_tests!(pgbouncer, Lab::pgbouncer());
contract_tests!(mariadb, Lab::mariadb());
contract_tests!(mysql, Lab::mysql());
contract_tests!(mariadb_direct, Lab::mariadb().map(DirectLab));
contract_tests!(mysql_direct, Lab::mysql().map(DirectLab));
contract_tests!(
    #[ignore = "make prove"]
    postgres_odd,
    Lab::postgres_odd()
);
contract_tests!(
    #[ignore = "make prove"]
    mariadb_odd,
    Lab::mariadb_odd()
);
contract_tests!(
    #[ignore = "make prove"]
    mysql_odd,
    Lab::mysql_odd()
);
contract_tests!(
    #[ignore = "make prove"]
    postgres_repeatable_read,
    Lab::postgres_isolated("repeatable read"),
    contending_clients_hold_a_lock_one_at_a_time,
    first_use_by_twenty_at_once_has_one_winner,
    an_expired_lease_has_one_successor,
);
contract_tests!(
    #[ignore = "make prove"]
    postgres_serializable,
    Lab::postgres_isolated("serializable"),
    contending_clients_hold_a_lock_one_at_a_time,
);
