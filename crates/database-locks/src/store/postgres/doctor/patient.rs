//! What the examination works with: the connection, the table and the notes.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::doctor::Notes;
use crate::store::connect::table::Table;
use crate::store::postgres::connection::session::{Param, Session};
use crate::store::postgres::error::{Kind, ServerError};

pub(crate) struct Patient<'a> {
    pub(crate) on: &'a Session,
    pub(crate) table: &'a Table,
    pub(crate) notes: Notes,
}

impl Patient<'_> {
    /// Ask about the table; none where the server refuses to tell, which is noted.
    pub(crate) async fn look(
        &mut self,
        area: &'static str,
        statement: &str,
        params: &[(Param<'_>, Type)],
    ) -> Result<Option<Vec<Row>>, ServerError> {
        match self.on.query(statement, params).await {
            Ok(rows) => Ok(Some(rows)),
            // Or it cannot for now: past a statement_timeout for one, which is found all the same.
            Err(ServerError {
                kind: Kind::Rejected(_) | Kind::Missing(_) | Kind::Unavailable,
                message,
                ..
            }) => {
                self.notes.unseen(area, message);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
