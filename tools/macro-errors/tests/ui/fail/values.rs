use database_locks::locked;

#[locked(5)]
fn number_as_name() {}

#[locked(ttl("5s"))]
fn call_as_name() {}

#[locked(name = 5)]
fn number_as_named_name() {}

#[locked("")]
fn empty_name() {}

#[locked("a\0b")]
fn name_with_nul() {}

#[locked("report", holder = 'x')]
fn char_as_holder() {}

#[locked("report", auto_renew = "no")]
fn text_as_flag() {}

#[locked("report", preempt = 1)]
fn number_as_flag() {}

#[locked("report", preempt = true)]
fn preempt_without_holder() {}

#[locked("report", metadata = "nightly")]
fn text_as_metadata() {}

#[locked("report", metadata = ["by", "me"])]
fn metadata_without_pairs() {}

#[locked("report", via = "postgres://localhost/app")]
fn url_as_locks() {}

#[locked("report", crate = "database_locks")]
fn text_as_path() {}

#[locked("invoice {id}")]
fn not_a_format_string(id: u32) {
    let _ = id;
}

fn main() {}
