//! The attribute macro `#[locked]` of the crate `database-locks`.
//!
//! Depend on that crate: it re-exports the macro, documents it, and contains what the macro expands
//! to.
//!
//! | file | content |
//! | --- | --- |
//! | `args.rs` | the arguments in the parentheses, checked as far as possible at compile time |
//! | `expand.rs` | expansion: a function that acquires the lock first |
//! | `function.rs` | the function under the attribute, and the checks of its signature |
//! | `future.rs` | which functions return a future, and of what type |

mod args;
mod expand;
mod function;
mod future;

use proc_macro::TokenStream;

/// Run a function only while holding a lock. Documented as `database_locks::locked`.
#[proc_macro_attribute]
pub fn locked(args: TokenStream, function: TokenStream) -> TokenStream {
    expand::locked(args.into(), function.into()).into()
}
