//! Macros for methods that only pass a call on.

/// Settings that a field keeps: `settings! { self.0, "crate::Lock"; wait(limit: Duration); }` makes
/// `fn wait(self, limit: Duration) -> Self`, with a reference to `crate::Lock::wait`. Without that
/// path each one has documentation of its own.
macro_rules! settings {
    ($self:ident.$field:tt, $of:literal; $($name:ident($($arg:ident: $type:ty),*);)*) => {
        settings! { $self.$field; $(
            #[doc = concat!("See [`", $of, "::", stringify!($name), "`].")]
            $name($($arg: $type),*);
        )* }
    };
    ($self:ident.$field:tt; $($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*);)*) => {
        $(
            $(#[$doc])*
            pub fn $name(mut $self, $($arg: $type),*) -> Self {
                $self.$field = $self.$field.$name($($arg),*);
                $self
            }
        )*
    };
}

/// Calls of the API without async, each of which waits for a future of the other:
/// `waits! { self, self.0, "crate::Locks"; list() -> Vec<LockInfo>; }`.
macro_rules! waits {
    ($self:ident, $inner:expr, $of:literal; $($name:ident($($arg:ident: $type:ty),*) -> $output:ty;)*) => {
        $(
            #[doc = concat!("See [`", $of, "::", stringify!($name), "`].")]
            pub fn $name(&$self, $($arg: $type),*) -> Result<$output, $crate::error::Error> {
                $crate::runtime::block_on($inner.$name($($arg),*))?
            }
        )*
    };
}

pub(crate) use {settings, waits};
