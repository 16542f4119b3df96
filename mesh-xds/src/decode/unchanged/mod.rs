//! Updates of which most did not change: equal bytes of a part are not decoded again.
//!
//! istiod sends all virtual hosts of a port when a route of one service changes, and all endpoints of a service when one
//! pod does. The result is that of decoding everything, only the work is not; wherever that is in doubt, the functions
//! here give up (`None`) and leave it to the full way. They do NOT decide what is valid.

mod endpoints;
mod routes;

pub(super) use endpoints::load_assignment;
pub(super) use routes::route_config;
