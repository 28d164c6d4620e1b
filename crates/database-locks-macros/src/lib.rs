//! The attribute macro `#[locked]`, of which the crate `database-locks` is the door: depend on that
//! one. It re-exports the macro, documents it, and has what the macro expands to.
//!
//! | file | what |
//! | --- | --- |
//! | `args.rs` | what stands in the parentheses, checked as far as it can be without running |
//! | `expand.rs` | the function as it was written, to the function that takes the lock first |
//! | `future.rs` | which functions return a future, and of what |

mod args;
mod expand;
mod future;

use proc_macro::TokenStream;

/// Run a function only while holding a lock.
#[proc_macro_attribute]
pub fn locked(args: TokenStream, function: TokenStream) -> TokenStream {
    expand::locked(args.into(), function.into()).into()
}
