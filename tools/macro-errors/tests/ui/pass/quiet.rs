//! The expansion makes no warnings of its own, and hides no error type or argument behind names.
#![deny(warnings, unused, rust_2018_idioms)]
#![allow(dead_code)]

use std::pin::Pin;

use database_locks::{Locks, locked};

struct Error;
struct Ok;
type Result<T> = std::result::Result<T, Failure>;
struct Failure;

impl From<database_locks::Error> for Failure {
    fn from(_: database_locks::Error) -> Self {
        Self
    }
}

/// Documented.
#[must_use]
#[locked("a", ttl = "inf", renew_every = "1s", auto_renew = true, margin = "2s")]
pub async fn nothing_in_scope(lock: u8, error: Error, output: Ok) -> Result<u8> {
    let (Error, Ok) = (error, output);
    if lock > 1 {
        return Result::Ok(lock);
    }
    Result::Ok(lock + 1)
}

const NAME: &str = "b";

#[locked(NAME, poll = "1s", holder = "me", preempt = true, metadata = [("times", times), ("by", "me")])]
fn nothing_returned(mut times: u8) {
    while times > 0 {
        times -= 1;
    }
}

#[locked("c", via = locks)]
async fn unit(locks: &Locks) {}

#[locked("boxed")]
fn boxed<'a>(error: &'a str) -> Pin<Box<dyn Future<Output = Option<&'a str>> + Send + 'a>> {
    Box::pin(async move { Some(error) })
}

#[locked("opaque")]
fn opaque(output: u8) -> impl Future<Output = std::io::Result<u8>> + Send {
    async move { std::io::Result::Ok(output) }
}

#[rustfmt::skip]
#[locked("d", ttl = "1s")]
async fn on_one_line(n: u8) -> Option<u8> { Some(n) }

#[rustfmt::skip]
#[locked("e", ttl = "1s")]
fn blocking_on_one_line(n: u8) -> Option<u8> { Some(n) }

macro_rules! job {
    ($name:ident, $lock:literal, $ttl:expr, $body:block) => {
        #[locked($lock, ttl = $ttl)]
        fn $name() -> u8 $body
    };
}

macro_rules! async_job {
    ($body:block) => {
        #[locked("made")]
        async fn made_async() -> u8 $body
    };
}

async_job!({ 42 });
job!(made, "made", "5s", { 42 });

#[locked]
async fn main_is_locked_elsewhere() -> std::result::Result<(), Box<dyn std::error::Error>> {
    "5".parse::<u8>()?;
    std::result::Result::Ok(())
}

#[locked("generic")]
fn generic<T>(of: T) -> T {
    of
}

#[locked("lazy")]
fn lazy<'a>(of: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
    of.iter().copied()
}

fn main() {}
