//! The driver's connection, and how it is dropped.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Waker};

use mysql_async::Conn;

use crate::runtime::fork::ForkSafe;

/// A connection that is closed at once when it is dropped, in the midst of a statement too, and on
/// whatever thread that happens.
///
/// The driver leaves that to a task, which it spawns on the current runtime, and which reads the
/// rest of an answer first. That task of the application's runtime would own a socket of this
/// library, which a forked child drops. In a child the connection is leaked.
pub(crate) struct DriverConnection {
    /// There until this is dropped.
    conn: Option<Conn>,
    process: ForkSafe<()>,
}

impl DriverConnection {
    pub(crate) fn new(conn: Conn) -> Self {
        Self {
            conn: Some(conn),
            process: ForkSafe::new(()),
        }
    }
}

impl Deref for DriverConnection {
    type Target = Conn;

    #[allow(clippy::expect_used, reason = "only `drop` takes it")]
    fn deref(&self) -> &Conn {
        self.conn.as_ref().expect("not dropped yet")
    }
}

impl DerefMut for DriverConnection {
    #[allow(clippy::expect_used, reason = "only `drop` takes it")]
    fn deref_mut(&mut self) -> &mut Conn {
        self.conn.as_mut().expect("not dropped yet")
    }
}

impl Drop for DriverConnection {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        if !self.process.is_in_owner_process() {
            return std::mem::forget(conn);
        }
        // Sends COM_QUIT if that is possible without waiting. From here on the driver takes the
        // connection as closed, as it does during a statement.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let mut told = pin!(conn.disconnect());
            let _ = told.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }));
    }
}
