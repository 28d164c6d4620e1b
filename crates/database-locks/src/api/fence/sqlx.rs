//! Transactions of sqlx, and its connections while such a one is open.

use sqlx::{Connection, Database, Transaction};

use crate::api::fence::statement::Fence;
use crate::api::fence::transaction::Failed;
use crate::error::Error;

/// Refuse what would not stay fenced. That it is a savepoint cannot be seen.
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

/// What is not about the fence.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
fn otherwise(fence: &Fence, error: sqlx::Error) -> Failed {
    use sqlx::Error as DriverError;
    let op = crate::api::fence::transaction::op(fence);
    Failed::Otherwise(match error {
        DriverError::Database(said) => Error::Rejected {
            op,
            hint: None,
            source: said.message().to_owned().into(),
        },
        error => Error::Unavailable {
            op,
            source: Box::new(error),
        },
    })
}

/// A transaction is fenced as its connection is.
macro_rules! transactions_of {
    ($database:ty) => {
        impl sealed::Transaction for Transaction<'_, $database> {
            const ENGINE: &'static str =
                <<$database as Database>::Connection as sealed::Transaction>::ENGINE;

            async fn pass(&mut self, fence: &Fence) -> Result<(), Failed> {
                sealed::Transaction::pass(&mut **self, fence).await
            }
        }
    };
}

#[cfg(feature = "sqlx-postgres")]
mod postgres {
    use sqlx::{AssertSqlSafe, PgConnection, Postgres, query};

    use super::{Database, Transaction, in_transaction, otherwise};
    use crate::api::fence::statement::ParamStyle;
    use crate::api::fence::statement::{Fence, FenceFailure};
    use crate::api::fence::transaction::{Failed, one_row, sealed};

    fn failed(fence: &Fence, error: sqlx::Error) -> Failed {
        let code = error.as_database_error().and_then(|said| said.code());
        match code.and_then(|code| FenceFailure::of_sqlstate(&code)) {
            Some(failure) => Failed::Fence(failure),
            None => otherwise(fence, error),
        }
    }

    impl sealed::Transaction for PgConnection {
        const ENGINE: &'static str = "postgres";

        async fn pass(&mut self, fence: &Fence) -> Result<(), Failed> {
            in_transaction(self)?;
            let Some(sql) = fence.sql(ParamStyle::Numbered) else {
                return Ok(());
            };
            let (name, token, grant) = fence.params();
            // Unnamed: behind a pooler the next statement may come to another session.
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
    use crate::api::fence::statement::ParamStyle;
    use crate::api::fence::statement::{Fence, FenceFailure};
    use crate::api::fence::transaction::{Failed, one_row, sealed};

    fn failed(fence: &Fence, error: sqlx::Error) -> Failed {
        let said = error.as_database_error();
        let said = said.and_then(|said| said.try_downcast_ref::<MySqlDatabaseError>());
        match said.and_then(|said| FenceFailure::of_mysql(said.number())) {
            Some(failure) => Failed::Fence(failure),
            None => otherwise(fence, error),
        }
    }

    impl sealed::Transaction for MySqlConnection {
        const ENGINE: &'static str = "mysql";

        async fn pass(&mut self, fence: &Fence) -> Result<(), Failed> {
            in_transaction(self)?;
            let (style, (name, token, grant)) = (ParamStyle::Question, fence.params());
            if let Some(before) = fence.before(style) {
                let found = query(AssertSqlSafe(before))
                    .bind(name)
                    .bind(token)
                    .bind(grant)
                    .fetch_all(&mut *self)
                    .await;
                one_row(fence, found.map_err(|e| failed(fence, e))?.len() as u64)?;
            }
            let Some(sql) = fence.sql(style) else {
                return Ok(());
            };
            let done = query(AssertSqlSafe(sql))
                .bind(name)
                .bind(token)
                .bind(grant)
                .execute(self)
                .await;
            one_row(fence, done.map_err(|e| failed(fence, e))?.rows_affected())
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

        /// The open fence is all.
        async fn pass(&mut self, _: &Fence) -> Result<(), Failed> {
            in_transaction(self)
        }
    }

    transactions_of!(Sqlite);
}
