//! What the examples share: the generated code of their protos, a service, and an echo backend to call.
//!
//! The programs are in `src/bin`, each short but `quickstart`. This crate is NOT a library for anybody else.

pub mod backend;
pub mod greeter;
pub mod proto;
