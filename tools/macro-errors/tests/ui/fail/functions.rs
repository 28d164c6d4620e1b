use std::future::Future;
use std::pin::Pin;

use database_locks::locked;

#[locked]
const fn constant() {}

#[locked]
extern "C" fn external() {}

#[locked]
struct Report;

#[locked]
mod jobs {}

struct Shop;

impl Shop {
    #[locked]
    fn method(&self) {}

    #[locked(ttl = "5s")]
    fn new() -> Self {
        Self
    }
}

trait Work {
    #[locked("work")]
    fn work(&self);
}

#[locked("shop")]
impl Shop {}

#[locked]
fn future() -> Box<dyn Future<Output = ()> + Send + Unpin> {
    Box::new(Box::pin(async {}))
}

#[locked]
fn named_future() -> Pin<Box<OwnFuture>> {
    Box::pin(OwnFuture)
}

struct OwnFuture;

fn main() {}
