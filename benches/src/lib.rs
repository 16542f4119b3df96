//! Benchmarks of the mesh: what a call costs and what a change of configuration costs.
//!
//! `cargo run --release -p benches --bin stack` compares whole client stacks side by side (src/bin/stack); `cargo bench
//! -p benches` times single rooms. The library part holds only what both need. It does NOT measure servers.

pub mod alloc;
pub mod inputs;
