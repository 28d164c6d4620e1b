//! Nothing: `tests/ui.rs` compiles programs with `#[locked]`, right and wrong ones.
