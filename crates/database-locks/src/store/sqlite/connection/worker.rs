//! A connection to the file, used by one thread at a time.

use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};

use super::database::{Database, File, identity};
use super::session::Session;
use crate::store::api::StoreError;

pub(crate) struct Worker {
    pub(crate) database: Arc<Database>,
    pub(crate) file: Option<File>,
}

impl Worker {
    /// A worker that opens the file when it is first needed.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        let file = None;
        Self { database, file }
    }

    /// The connection. Opens the file if it is not open.
    ///
    /// A file that was deleted or replaced is given up: locks in it would exclude only clients that
    /// still have it open.
    pub(crate) fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        let is_there = |file: &File| identity(&self.database.path) == Some(file.identity);
        let file = match self.file.take() {
            Some(file) if is_there(&file) => file,
            _ => self.database.open()?,
        };
        Ok(&mut self.file.insert(file).connection)
    }

    fn run<T>(
        &mut self,
        work: impl FnOnce(&mut Connection, &Database) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        let done = work(self.connection()?, &database);
        done.map_err(|error| {
            let error = database.explain(&error);
            if matches!(error, StoreError::Unavailable(_)) {
                self.file = None;
            }
            error
        })
    }

    /// Run `work` on the open file.
    pub(crate) fn with<T>(
        &mut self,
        work: impl FnOnce(&Session<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.run(|connection, database| work(&database.session(connection)))
    }

    /// Run `work` with the write lock, and commit.
    pub(crate) fn write<T>(
        &mut self,
        work: impl FnOnce(&Session<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let done = self.run(|connection, database| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&database.session(&tx))?;
            tx.commit()?;
            Ok(done)
        })?;
        self.database.note_written();
        Ok(done)
    }
}
