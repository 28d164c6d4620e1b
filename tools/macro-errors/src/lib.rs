//! Empty: `tests/ui.rs` compiles programs with `#[locked]` and compares the compiler's errors.
