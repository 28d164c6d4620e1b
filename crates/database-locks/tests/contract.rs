//! Every clause of the store contract, on every engine.

use testkit::{Lab, contract_tests};

contract_tests!(memory, Lab::memory());
contract_tests!(sqlite, Lab::sqlite());
