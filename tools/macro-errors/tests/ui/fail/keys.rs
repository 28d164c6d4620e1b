use database_locks::locked;

#[locked("report", timeout = "5s")]
fn unknown() {}

#[locked("report", take_over = true)]
fn of_another_name() {}

#[locked(no_wait)]
fn bare_key() {}

#[locked(ttl = "5s", ttl = "10s")]
fn twice() {}

#[locked("report", name = "report")]
fn two_names() {}

#[locked(ttl = "5s", "report")]
fn name_goes_first() {}

#[locked("report", ttl =)]
fn no_value() {}

#[locked("report" ttl = "5s")]
fn no_comma() {}

fn main() {
    // They are there all the same: no error but those above.
    unknown();
    bare_key();
}
