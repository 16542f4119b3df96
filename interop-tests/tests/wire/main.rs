//! Tests over real sockets, in one binary so that they link once.
//!
//! Each module is named by what it proves. The parts that a test starts are in the library of this package. It does NOT
//! hold unit tests.

mod aggregate;
mod alone;
mod bad_resources;
mod balancing;
mod certificates;
mod clusters;
mod control_plane_failures;
mod credentials;
mod credentials_among_peers;
mod csds;
mod csds_tools;
mod data_errors;
mod deadlines;
mod delta;
mod dns;
mod envoy_client_of_our_control_plane;
mod events;
mod failures;
mod fallback;
mod features;
mod federation;
mod foreign_clients_of_our_control_plane;
mod generated_clients;
mod headers;
mod http1;
mod http1_server;
mod interop_client;
mod interop_server;
mod istiod;
mod istiod_replay;
mod istiod_scenarios;
mod load;
mod load_reports;
mod mesh;
mod no_call_lost;
mod oracle;
mod our_client;
mod our_client_among_peers;
mod peers_without_us;
mod process;
mod protocols;
mod refuser;
mod removals;
mod retries;
mod rig;
mod rotation;
mod routing;
mod servers_without_manners;
mod shutdown;
mod single_resources;
mod tokens;
mod transport_corners;
mod transport_socket;
