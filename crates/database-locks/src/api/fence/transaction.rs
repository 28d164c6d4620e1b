//! The driver transactions that can be fenced.

use crate::api::fence::statement::{Fence, FenceFailure};
use crate::error::Error;

/// A transaction that [`LockGuard::fence`](crate::LockGuard::fence) can fence: one of a driver
/// whose feature is on, in the version that this crate re-exports. Sealed: no other type can
/// implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a transaction that `database-locks` can fence",
    note = "it takes those of tokio-postgres 0.7 (feature `postgres`), mysql_async 0.37 (`mysql`), \
            rusqlite 0.32 to 0.43 (`sqlite`) and sqlx 0.9 (`sqlx-postgres`, `sqlx-mysql`, \
            `sqlx-sqlite`), as `&mut tx`",
    note = "for another driver or version, sqlx 0.8 for one, run `LockGuard::fence_statement` in the \
            transaction: a dozen lines, in the guide under \"Another driver\""
)]
pub trait FenceTransaction: sealed::Transaction {}

impl<T: sealed::Transaction> FenceTransaction for T {}

/// Why a transaction did not pass.
#[derive(Debug)]
pub enum Failed {
    /// A failure that the state of the lock explains.
    Fence(FenceFailure),
    /// A failure that is not about the fence.
    Otherwise(Error),
}

pub(crate) mod sealed {
    use super::{Failed, Fence};

    #[allow(unreachable_pub, reason = "a sealed trait: no other crate can name it")]
    pub trait Transaction {
        /// The engine, by its metrics label.
        const ENGINE: &'static str;

        /// Run the statements of the fence.
        fn run_fence(&mut self, fence: &Fence) -> impl Future<Output = Result<(), Failed>> + Send;
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) fn one_row(fence: &Fence, rows: u64) -> Result<(), Failed> {
    match fence.passes(rows) {
        true => Ok(()),
        false => Err(Failed::Fence(FenceFailure::NoRow)),
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) fn op(fence: &Fence) -> String {
    format!("fence lock `{}`", fence.params().0)
}

/// Outside a transaction each statement is its own transaction, and the fence would end at once.
#[cfg(feature = "postgres")]
fn no_transaction() -> Failed {
    Failed::Otherwise(Error::config(
        "fence",
        "outside of a transaction",
        "the first statement after BEGIN",
    ))
}

#[cfg(feature = "postgres")]
mod postgres {
    use tokio_postgres::types::{ToSql, Type};
    use tokio_postgres::{Client, Error as DriverError, Transaction};

    use super::{Failed, Fence, FenceFailure, no_transaction, one_row, op, sealed};
    use crate::api::fence::statement::ParamStyle;
    use crate::error::Error;

    /// Row locks need a transaction id, so a fenced transaction has one.
    const IN_TRANSACTION: &str = "SELECT txid_current_if_assigned() IS NOT NULL";

    fn failed(fence: &Fence, error: DriverError) -> Failed {
        let code = error.code().map(|code| code.code().to_owned());
        if let Some(failure) = code.as_deref().and_then(FenceFailure::of_sqlstate) {
            return Failed::Fence(failure);
        }
        let (op, source) = (op(fence), Box::new(error));
        Failed::Otherwise(match code.as_deref() {
            None => Error::Unavailable { op, source },
            Some(code) => {
                let hint = match code {
                    "42501" => Some("it takes the rights SELECT and UPDATE on the table".into()),
                    "25006" => Some("a transaction that is read-only has nothing to fence".into()),
                    _ => None,
                };
                Error::rejected(op, hint, source)
            }
        })
    }

    /// Not prepared: behind a pooler the next statement may reach another session.
    async fn run_fence(client: &Client, fence: &Fence) -> Result<(), Failed> {
        let Some(sql) = fence.sql(ParamStyle::Numbered) else {
            return Ok(());
        };
        let (name, token, grant) = fence.params();
        let params: [(&(dyn ToSql + Sync), Type); 3] = [
            (&name, Type::TEXT),
            (&token, Type::INT8),
            (&grant, Type::TEXT),
        ];
        let rows = client.query_typed(&sql, &params).await;
        one_row(fence, rows.map_err(|e| failed(fence, e))?.len() as u64)
    }

    impl sealed::Transaction for Transaction<'_> {
        const ENGINE: &'static str = "postgres";

        async fn run_fence(&mut self, fence: &Fence) -> Result<(), Failed> {
            run_fence(self.client(), fence).await
        }
    }

    impl sealed::Transaction for Client {
        const ENGINE: &'static str = "postgres";

        async fn run_fence(&mut self, fence: &Fence) -> Result<(), Failed> {
            run_fence(self, fence).await?;
            let rows = self.query_typed(IN_TRANSACTION, &[]).await;
            let rows = rows.map_err(|e| failed(fence, e))?;
            match rows.first().map(|row| row.try_get(0)) {
                Some(Ok(true)) => Ok(()),
                _ => Err(no_transaction()),
            }
        }
    }
}

#[cfg(feature = "mysql")]
mod mysql {
    use mysql_async::prelude::Queryable;
    use mysql_async::{Error as DriverError, Transaction};

    use super::{Failed, Fence, FenceFailure, one_row, op, sealed};
    use crate::api::fence::statement::ParamStyle;
    use crate::error::Error;

    fn failed(fence: &Fence, error: DriverError) -> Failed {
        let op = op(fence);
        Failed::Otherwise(match error {
            DriverError::Server(error) => match FenceFailure::of_mysql(error.code) {
                Some(failure) => return Failed::Fence(failure),
                None => {
                    let hint = match error.code {
                        1142 | 1143 => {
                            Some("it takes the rights SELECT and UPDATE on the table".into())
                        }
                        1792 => Some("a transaction that is read-only has nothing to fence".into()),
                        _ => None,
                    };
                    // The driver's own error messages may contain whole packets.
                    let error = format!("{} (error {})", error.message, error.code);
                    Error::rejected(op, hint, error.into())
                }
            },
            error => Error::Unavailable {
                op,
                source: Box::new(error),
            },
        })
    }

    impl sealed::Transaction for Transaction<'_> {
        const ENGINE: &'static str = "mysql";

        async fn run_fence(&mut self, fence: &Fence) -> Result<(), Failed> {
            let style = ParamStyle::Question;
            for sql in fence.before(style).into_iter().chain(fence.sql(style)) {
                let done = self.exec_iter(sql, fence.params()).await;
                let done = done.map_err(|e| failed(fence, e))?;
                let rows = done.affected_rows();
                done.drop_result().await.map_err(|e| failed(fence, e))?;
                one_row(fence, rows)?;
            }
            Ok(())
        }
    }
}

#[cfg(feature = "sqlite-unbundled")]
mod sqlite {
    use super::{Failed, Fence, sealed};

    impl sealed::Transaction for rusqlite::Transaction<'_> {
        const ENGINE: &'static str = "sqlite";

        /// SQLite fences by the open transaction alone.
        fn run_fence(&mut self, _: &Fence) -> impl Future<Output = Result<(), Failed>> + Send {
            std::future::ready(Ok(()))
        }
    }
}
