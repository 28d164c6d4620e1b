//! Every clause of the store contract, on every engine.

use testkit::contract::LaneLab;
use testkit::{Lab, contract_tests};

contract_tests!(memory, Lab::memory());
contract_tests!(sqlite, Lab::sqlite());
contract_tests!(memory_lane, Lab::memory().map(LaneLab));
contract_tests!(sqlite_lane, Lab::sqlite().map(LaneLab));
contract_tests!(postgres, Lab::postgres());
contract_tests!(
    #[ignore = "make prove"]
    postgres18,
    Lab::postgres18()
);
contract_tests!(postgres_lane, Lab::postgres().map(LaneLab));
contract_tests!(pgbouncer_lane, Lab::pgbouncer().map(LaneLab));
contract_tests!(pgbouncer, Lab::pgbouncer());
contract_tests!(mariadb, Lab::mariadb());
contract_tests!(mysql, Lab::mysql());
contract_tests!(mariadb_lane, Lab::mariadb().map(LaneLab));
contract_tests!(mysql_lane, Lab::mysql().map(LaneLab));
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
