//! Transport sockets of a cluster (A29).

/// What the control plane wants on the wire to this cluster's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TransportSocket {
    /// No `transport_socket`, or `envoy.transport_sockets.raw_buffer`.
    #[default]
    Plaintext,
    /// Valid, but not supported by this version: every dial must fail, never fall back to plaintext.
    Unsupported {
        /// The field that asks for it, with the socket's type (`transport_socket: envoy.transport_sockets.tls`).
        field: String,
    },
}
