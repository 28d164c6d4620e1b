//! Futures that the signature does not show: their work would be done without the lock.
use std::future::{Future, Ready, ready};
use std::pin::Pin;

use database_locks::locked;

type Work<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

#[locked]
fn under_an_alias(name: &str) -> Work<'_> {
    Box::pin(async move { drop(name) })
}

#[locked]
fn of_another_name() -> Ready<u8> {
    ready(5)
}

#[locked]
fn hidden() -> impl Sized {
    async {}
}

fn main() {}
