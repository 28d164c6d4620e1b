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

#[locked]
fn future() -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async {})
}

#[locked]
fn opaque_future() -> impl Future<Output = ()> {
    async {}
}

fn main() {}
