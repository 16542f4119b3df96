//! x
mod balance;
#[cfg_attr(not(test), expect(dead_code, reason = "the channel asks it for each call"))]
mod deadline;
pub mod route;
