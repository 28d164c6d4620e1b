//! The SQL of MySQL and MariaDB.

pub(crate) mod batch;
pub(crate) mod fence;
pub(crate) mod install;
pub(crate) mod mariadb;
pub(crate) mod text;
