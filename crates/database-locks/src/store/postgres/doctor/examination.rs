//! An examination under way: the connection, the table, and the report so far.

use tokio_postgres::Row;

use crate::store::connect::table::Table;
use crate::store::doctor::ReportBuilder;
use crate::store::postgres::connection::session::{Param, Session};
use crate::store::postgres::error::{Kind, ServerError};

pub(crate) struct Examination<'a> {
    pub(crate) session: &'a Session,
    pub(crate) table: &'a Table,
    pub(crate) report: ReportBuilder,
}

impl Examination<'_> {
    /// Run a query. If the server refuses it, the area is recorded as unseen and the answer is
    /// `None`.
    pub(crate) async fn try_query(
        &mut self,
        area: &'static str,
        statement: &str,
        params: &[&dyn Param],
    ) -> Result<Option<Vec<Row>>, ServerError> {
        match self.session.query(statement, params).await {
            Ok(rows) => Ok(Some(rows)),
            // Unavailable: for example ended by `statement_timeout`, which has its own finding.
            Err(ServerError {
                kind: Kind::Rejected(_) | Kind::Missing(_) | Kind::Unavailable,
                message,
                ..
            }) => {
                self.report.unseen(area, message);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
