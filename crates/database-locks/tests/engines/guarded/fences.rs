//! Fences of the drivers.
