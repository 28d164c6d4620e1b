//! CMD as a process: its start and end, signals, and the terminal.

mod child;
pub(crate) mod program;
mod signals;
mod terminal;

pub(crate) use self::child::{Change, Child, End};
pub(crate) use self::signals::{Ignored, Signals};
pub(crate) use self::terminal::Terminal;
