//! The two directions of one connection.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, tcp};

use super::state::{Loss, State};

/// The size of a read: any request of a test fits, so that a pattern is never split.
const CHUNK: usize = 64 * 1024;

/// Forwards in both directions until the server ends the connection or a fault does.
pub(super) async fn both(state: &State, client: TcpStream, target: (String, u16)) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    for socket in [&client, &server] {
        // Else an answer may wait 40 ms for an acknowledgement, which no test expects.
        let _ = socket.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let losing = AtomicBool::new(false);
    let up = async {
        if up(state, from_client, to_server, &losing).await == Up::Said {
            // The server may still answer: the other direction ends the connection.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = up => {}
        () = down(state, from_server, to_client, &losing) => {}
    }
}

/// How the client's direction ended.
#[derive(PartialEq, Eq)]
enum Up {
    /// The client has closed its direction.
    Said,
    /// By an error or a fault, and the connection with it.
    Over,
}

async fn up(
    state: &State,
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    losing: &AtomicBool,
) -> Up {
    let mut control = state.control.subscribe();
    let mut buffer = vec![0; CHUNK];
    loop {
        let Ok(length) = from.read(&mut buffer).await else {
            return Up::Over;
        };
        // The end of the stream is held back like any byte of it.
        if length > 0 && !control.borrow().up {
            state.tally().faults_hit += 1;
        }
        if control.wait_for(|control| control.up).await.is_err() {
            return Up::Over;
        }
        if length == 0 {
            return if to.shutdown().await.is_ok() {
                Up::Said
            } else {
                Up::Over
            };
        }
        let chunk = &buffer[..length];
        match state.tally().request(chunk) {
            None => {}
            // Before the request is sent on, or its reply could be faster than this.
            Some(Loss::Reply) => losing.store(true, Ordering::SeqCst),
            Some(Loss::Request) => return Up::Over,
        }
        if to.write_all(chunk).await.is_err() {
            return Up::Over;
        }
    }
}

async fn down(
    state: &State,
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    losing: &AtomicBool,
) {
    let mut control = state.control.subscribe();
    let mut buffer = vec![0; CHUNK];
    loop {
        let Ok(length) = from.read(&mut buffer).await else {
            return;
        };
        if length > 0 && !control.borrow().down {
            state.tally().faults_hit += 1;
        }
        if control.wait_for(|control| control.down).await.is_err() || length == 0 {
            return;
        }
        if losing.load(Ordering::SeqCst) {
            state.tally().faults_hit += 1;
            return;
        }
        state.tally().reply(length);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
