//! Choosing where a call goes: priorities, localities, endpoints.
//!
//! Everything here is sans-IO: the cluster worker brings the clock and the events. Nothing here knows HTTP or sockets.

#[cfg_attr(not(test), expect(dead_code, reason = "the cluster worker runs it"))]
pub(crate) mod priority;
