//! The connection of the driver, and its drop.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Waker};

use mysql_async::Conn;

use crate::runtime::fork::ForkSafe;

/// A connection that is closed at once when it is dropped, on any thread, and during a statement
/// too.
///
/// The driver closes a connection in a task that it spawns on the current runtime, and reads the
/// rest of an answer first. That task would belong to the application's runtime and own a socket of
/// this library, which a forked child would drop. In a forked child the connection is leaked.
pub(crate) struct DriverConnection {
    /// `Some` until the drop.
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

    fn deref(&self) -> &Conn {
        self.conn.as_ref().expect("not dropped yet")
    }
}

impl DerefMut for DriverConnection {
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
        // Sends COM_QUIT if that is possible without waiting. After this the driver treats the
        // connection as closed.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let mut answer = pin!(conn.disconnect());
            let _ = answer
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
        }));
    }
}
