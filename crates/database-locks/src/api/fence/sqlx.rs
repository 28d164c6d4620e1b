//! Transactions of sqlx, and its connections with an open transaction.

use sqlx::{Connection, Database, Transaction};

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use crate::api::fence::statement::Fence;
use crate::api::fence::transaction::Failed;
use crate::error::Error;

/// Reject a connection without an open transaction. A savepoint cannot be detected.
fn in_transaction(connection: &impl Connection) -> Result<(), Failed> {
    if connection.is_in_transaction() {
        return Ok(());
    }
    Err(Failed::Otherwise(Error::config(
        "fence",
        "outside of a transaction",
        "the first statement of one that was begun with `begin()`",
    )))
}

/// Classify a failure that is not about the fence.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
fn otherwise(fence: &Fence, error: sqlx::Error) -> Failed {
    use sqlx::Error as DriverError;
    let op = crate::api::fence::transaction::op(fence);
    Failed::Otherwise(match error {
        DriverError::Database(error) => Error::Rejected {
            op,
            hint: None,
            source: error.message().to_owned().into(),
        },
        error => Error::Unavailable {
            op,
            source: Box::new(error),
        },
    })
}

/// A transaction is fenced through its connection.
macro_rules! transactions_of {
    ($database:ty) => {
        impl sealed::Transaction for Transaction<'_, $database> {
            const ENGINE: &'static str =
                <<$database as Database>::Connection as sealed::Transaction>::ENGINE;

            async fn run_fence(&mut self, fence: &Fence) -> Result<(), Failed> {
                sealed::Transaction::run_fence(&mut **self, fence).await
            }
        }
    };
}

#[cfg(feature = "sqlx-postgres")]
mod postgres {
    use sqlx::{AssertSqlSafe, PgConnection, Postgres, query};

    use super::{Database, Transaction, in_transaction, otherwise};
    use crate::api::fence::statement::{Fence, FenceFailure, ParamStyle};
    use crate::api::fence::transaction::{Failed, one_row, sealed};

    fn failed(fence: &Fence, error: sqlx::Error) -> Failed {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.and_then(|code| FenceFailure::of_sqlstate(&code)) {
            Some(failure) => Failed::Fence(failure),
            None => otherwise(fence, error),
        }
    }

    impl sealed::Transaction for PgConnection {
        const ENGINE: &'static str = "postgres";

        async fn run_fence(&mut self, fence: &Fence) -> Result<(), Failed> {
            in_transaction(self)?;
            let Some(sql) = fence.sql(ParamStyle::Numbered) else {
                return Ok(());
            };
            let (name, token, grant) = fence.params();
            // Unnamed: behind a pooler the next statement may reach another session.
            let found = query(AssertSqlSafe(sql))
                .bind(name)
                .bind(token)
                .bind(grant)
                .persistent(false)
                .fetch_all(self)
                .await;
            one_row(fence, found.map_err(|e| failed(fence, e))?.len() as u64)
        }
    }

    transactions_of!(Postgres);
}

#[cfg(feature = "sqlx-mysql")]
mod mysql {
    use sqlx::mysql::MySqlDatabaseError;
    use sqlx::{AssertSqlSafe, MySql, MySqlConnection, query};

    use super::{Database, Transaction, in_transaction, otherwise};
    use crate::api::fence::statement::{Fence, FenceFailure, ParamStyle};
    use crate::api::fence::transaction::{Failed, one_row, sealed};

    fn failed(fence: &Fence, error: sqlx::Error) -> Failed {
        let answer = error.as_database_error();
        let answer = answer.and_then(|answer| answer.try_downcast_ref::<MySqlDatabaseError>());
        match answer.and_then(|answer| FenceFailure::of_mysql(answer.number())) {
            Some(failure) => Failed::Fence(failure),
            None => otherwise(fence, error),
        }
    }

    impl sealed::Transaction for MySqlConnection {
        const ENGINE: &'static str = "mysql";

        async fn run_fence(&mut self, fence: &Fence) -> Result<(), Failed> {
            in_transaction(self)?;
            let (style, (name, token, grant)) = (ParamStyle::Question, fence.params());
            for sql in fence.before(style).into_iter().chain(fence.sql(style)) {
                let done = query(AssertSqlSafe(sql))
                    .bind(name)
                    .bind(token)
                    .bind(grant)
                    .execute(&mut *self)
                    .await;
                one_row(fence, done.map_err(|e| failed(fence, e))?.rows_affected())?;
            }
            Ok(())
        }
    }

    transactions_of!(MySql);
}

#[cfg(feature = "sqlx-sqlite")]
mod sqlite {
    use sqlx::{Sqlite, SqliteConnection};

    use super::{Database, Transaction, in_transaction};
    use crate::api::fence::statement::Fence;
    use crate::api::fence::transaction::{Failed, sealed};

    impl sealed::Transaction for SqliteConnection {
        const ENGINE: &'static str = "sqlite";

        /// SQLite fences by the open transaction alone.
        async fn run_fence(&mut self, _: &Fence) -> Result<(), Failed> {
            in_transaction(self)
        }
    }

    transactions_of!(Sqlite);
}
