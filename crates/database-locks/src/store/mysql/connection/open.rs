//! Making a connection, with the pauses between attempts, and naming the server in errors.

use std::sync::Arc;

use super::config::Server;
use super::panic::or_panicked;
use super::session::Session;
use crate::error::Cause;
use crate::store::api::StoreError;
use crate::store::connect::backoff::Backoff;

pub(crate) async fn connect(
    server: &Arc<Server>,
    backoff: &mut Backoff,
) -> Result<Session, StoreError> {
    let connected = or_panicked(Session::open(server)).await;
    match &connected {
        Ok(_) => backoff.succeeded(),
        Err(failure) => {
            tracing::trace!("no connection to {}: {failure}", server.connector.hosts());
            backoff.failed();
        }
    }
    connected
}

/// Name the server in an error that does not.
pub(crate) fn name_server(server: &Server, failure: StoreError) -> StoreError {
    let named = |message: &str| {
        let config = server.connector.target();
        let mut hosts = config.hosts.iter();
        hosts.any(|host| message.contains(&host.address.to_string()))
    };
    match failure {
        StoreError::Unavailable(message) if !named(&message.to_string()) => {
            let placed = format!("{}: {message}", server.connector.hosts());
            StoreError::Unavailable(Cause::of(&message, placed).into())
        }
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::options::ConnectOptions;
    use crate::store::connect::provider::ServerProvider;
    use crate::store::connect::table::Table;
    use crate::store::connect::url;

    fn message(url: &str) -> url::Server {
        match url::parse(url) {
            Ok(url::Target::Mysql(server)) => server,
            other => panic!("{other:?}"),
        }
    }

    fn source() -> Arc<ServerProvider> {
        Arc::new(ServerProvider::new(ConnectOptions::url(
            "mysql://u@h:3307/d",
        )))
    }

    #[test]
    fn an_answer_stays_one_when_its_server_is_named() {
        let server =
            Server::new(message("mysql://u@h:3307/d"), source(), &Table::default()).unwrap();
        for message in ["it is read-only", "the server at h:3307 is read-only"] {
            let placed = name_server(&server, StoreError::cannot_serve(message));
            assert!(placed.is_answer(), "{placed}");
            assert!(placed.to_string().contains("h:3307"), "{placed}");
            let late = name_server(&server, StoreError::Unavailable(message.into()));
            assert!(!late.is_answer(), "{late}");
            let undone =
                name_server(&server, StoreError::cannot_serve(message).undone()).duplicate();
            assert!(undone.is_answer() && undone.is_undone(), "{undone}");
            assert!(!placed.is_undone() && !late.is_undone(), "{placed}");
            let refused = crate::store::connect::hosts::ConnectFailure::from(placed);
            assert!(StoreError::from(refused).is_answer(), "{message}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let message = message("mysql://u:hunter2@h:3307/d");
        let store = crate::store::mysql::Mysql::new(message, source(), &Table::default()).unwrap();
        let shown = format!("{store:?}");
        assert!(
            shown.contains("h:3307") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
