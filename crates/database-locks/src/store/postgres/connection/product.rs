//! Detects products that speak the protocol of PostgreSQL but are not PostgreSQL.

/// Parts of `version()`, in lower case, and the products that they show. Some of them call
/// themselves PostgreSQL.
const OTHERS: &[(&str, &str)] = &[
    ("cockroach", "CockroachDB"),
    ("-yb-", "YugabyteDB"),
    ("redshift", "Amazon Redshift"),
    ("greenplum", "Greenplum"),
    ("cloudberry", "Apache Cloudberry"),
    ("cratedb", "CrateDB"),
    ("materialize", "Materialize"),
    ("risingwave", "RisingWave"),
    ("questdb", "QuestDB"),
    ("opengauss", "openGauss"),
    ("gaussdb", "GaussDB"),
    ("redpanda", "Redpanda SQL"),
];

/// The beginnings of `version()` of PostgreSQL and its distributions; the second one is of old
/// versions of EDB's. Aurora, AlloyDB, Neon, Cloud SQL, RDS, Supabase and Percona answer as
/// PostgreSQL does.
const KNOWN: [&str; 2] = ["PostgreSQL ", "EnterpriseDB "];

/// The hint for a server that is refused.
pub(crate) const HINT: &str = "row locks, SKIP LOCKED and the clock are PostgreSQL's own here: use \
                               PostgreSQL 12 or later, or a service that runs it";

/// The name of the product, if it is not known to keep the promises of this library.
pub(crate) fn other_product(version: &str) -> Option<&str> {
    let lower = version.to_ascii_lowercase();
    let other = OTHERS.iter().find(|(mark, _)| lower.contains(mark));
    match other {
        Some((_, name)) => Some(name),
        None if KNOWN.iter().any(|name| version.starts_with(name)) => None,
        None => Some(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As their documentation, or an issue of their own, shows them.
    #[test]
    fn what_only_speaks_like_postgresql_is_refused_by_its_name() {
        for (version, name) in [
            (
                "CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu, built 2023/09/27 01:53:43, go1.19.10)",
                "CockroachDB",
            ),
            (
                "PostgreSQL 11.2-YB-2.18.0.1-b0 on x86_64-pc-linux-gnu, compiled by clang version \
                 15.0.3, 64-bit",
                "YugabyteDB",
            ),
            (
                "PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version \
                 17.0.6, 64-bit",
                "YugabyteDB",
            ),
            (
                "PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2 20041017 \
                 (Red Hat 3.4.2-6.fc3), Redshift 1.0.40182",
                "Amazon Redshift",
            ),
            (
                "PostgreSQL 9.4.24 (Greenplum Database 6.14.0 build \
                 commit:62d24f4a455276cab4bf2ca4538e96dcf58db8ba) on x86_64-unknown-linux-gnu, \
                 compiled by gcc (GCC) 6.4.0, 64-bit compiled on Feb  3 2021 19:35:00",
                "Greenplum",
            ),
            (
                "PostgreSQL 14.4 (Apache Cloudberry 2.0.0-incubating build dev) on \
                 x86_64-pc-linux-gnu",
                "Apache Cloudberry",
            ),
            (
                "CrateDB 5.1.4 (built 4b2c9a7/2023-01-30T10:32:44Z, Linux 5.15.0 amd64)",
                "CrateDB",
            ),
            (
                "PostgreSQL 9.6 on x86_64-apple-darwin (materialized 0.21.1-dev)",
                "Materialize",
            ),
            ("PostgreSQL 13.14.0-RisingWave-2.1.0 (abcdef)", "RisingWave"),
            ("Redpanda SQL 1.2.0 (abc1234)", "Redpanda SQL"),
            ("SomethingSQL 1.0", "SomethingSQL 1.0"),
        ] {
            assert_eq!(other_product(version), Some(name), "{version}");
        }
    }

    #[test]
    fn postgresql_and_what_runs_it_is_let_through() {
        for version in [
            "PostgreSQL 12.0 on x86_64-pc-linux-gnu, compiled by gcc, 64-bit",
            "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc \
             (Debian 12.2.0-14) 12.2.0, 64-bit",
            "PostgreSQL 18.0 on x86_64-linux, compiled by gcc-12.2.0, 64-bit",
            "PostgreSQL 15.1 on aarch64-unknown-linux-gnu, compiled by gcc (Ubuntu \
             10.3.0-1ubuntu1~20.04) 10.3.0, 64-bit",
            "PostgreSQL 16.1 - Percona Distribution on x86_64-pc-linux-gnu, compiled by gcc, 64-bit",
            "PostgreSQL 15.4 (EnterpriseDB Advanced Server 15.4.0) on x86_64-pc-linux-gnu, 64-bit",
            "EnterpriseDB 9.5.0.5 on x86_64-pc-linux-gnu, compiled by gcc, 64-bit",
        ] {
            assert_eq!(other_product(version), None, "{version}");
        }
    }
}
