use database_locks::locked;

#[locked("report", ttl = 30)]
fn number() {}

#[locked("report", ttl = "30 parsecs")]
fn unit() {}

#[locked("report", ttl = "99ms")]
fn too_short() {}

#[locked("report", ttl = "4000d")]
fn too_long() {}

#[locked("report", wait = "inf")]
fn endless_wait() {}

#[locked("report", wait = "-1s")]
fn negative_wait() {}

#[locked("report", renew_every = "1ms")]
fn too_often() {}

#[locked("report", poll = "0")]
fn no_pause() {}

#[locked("report", margin = true)]
fn flag() {}

fn main() {}
