//! The test kit itself: its servers, its proxy and its processes do what the tests assume.

mod galera;
mod group;
mod mysql;
mod pair;
mod postgres;
mod process;
mod promise;
mod proxy;
mod test_servers;
