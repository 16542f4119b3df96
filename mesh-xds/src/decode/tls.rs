//! Transport sockets of a cluster (A29, A82, A86).
//!
//! A TLS context is judged by all of A29's rules, and then turned into a refusal to dial: there is no TLS here yet,
//! and a cluster that asks for it must never get plaintext instead.

use super::{
    basics::{type_name, unpack},
    matcher::string,
    scope::Scope,
};
use crate::resource::{Invalid, TransportSocket};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{self as core_pb, transport_socket::ConfigType},
        },
        extensions::transport_sockets::{
            http_11_proxy::v3::Http11ProxyUpstreamTransport,
            raw_buffer::v3::RawBuffer,
            tls::v3::{
                CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            },
        },
    },
    google::protobuf::Any,
};
use prost::Name;

const TLS: &str = "envoy.transport_sockets.tls";

/// What the cluster wants on the wire.
pub(super) fn transport_socket(cluster: &Cluster, scope: &mut Scope<'_>) -> Result<TransportSocket, Invalid> {
    let socket = match &cluster.transport_socket {
        Some(socket) => scope.within("transport_socket", |scope| socket_of(socket, scope))?,
        None => TransportSocket::Plaintext,
    };
    // Which of them an endpoint would get is unknown here, so none of the cluster's endpoints may be dialled.
    if !cluster.transport_socket_matches.is_empty() {
        return Ok(TransportSocket::Unsupported { field: "transport_socket_matches".into() });
    }
    if cluster.transport_socket_matcher.is_some() {
        return Ok(TransportSocket::Unsupported { field: "transport_socket_matcher".into() });
    }
    Ok(socket)
}

fn socket_of(socket: &core_pb::TransportSocket, scope: &mut Scope<'_>) -> Result<TransportSocket, Invalid> {
    let any = match &socket.config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        // Envoy takes a raw buffer without configuration.
        None if socket.name == "envoy.transport_sockets.raw_buffer" => return Ok(TransportSocket::Plaintext),
        None => return Err(scope.invalid_at("typed_config", "must be set")),
    };
    let name = type_name(&any.type_url);
    if name == RawBuffer::full_name() {
        return Ok(TransportSocket::Plaintext);
    }
    if name == Http11ProxyUpstreamTransport::full_name() {
        scope.within("typed_config", |scope| {
            // "inner socket not UpstreamTlsContext" is refused (A86).
            match unpack::<Http11ProxyUpstreamTransport>(any, scope)?.transport_socket {
                Some(inner) => scope.within("transport_socket", |scope| tls_socket(&inner, scope)),
                None => Ok(()),
            }
        })?;
    } else {
        tls_socket(socket, scope)?;
    }
    Ok(TransportSocket::Unsupported { field: format!("transport_socket: {}", socket.name) })
}

/// "socket name other than envoy.transport_sockets.tls / wrong Any type / no common_tls_context" are refused (A29).
fn tls_socket(socket: &core_pb::TransportSocket, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    if socket.name != TLS {
        return Err(scope.invalid_at("name", format!("{:?} is not {TLS}", socket.name)));
    }
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else {
        return Err(scope.invalid_at("typed_config", "must be set"));
    };
    scope.within("typed_config", |scope| upstream_tls_context(any, scope))
}

fn upstream_tls_context(any: &Any, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    let context: UpstreamTlsContext = unpack(any, scope)?;
    // "sni longer than 255 chars -> CDS NACK" - A101
    if context.sni.len() > 255 {
        return Err(scope.invalid_at("sni", format!("{} characters are more than 255", context.sni.len())));
    }
    let Some(common) = &context.common_tls_context else {
        return Err(scope.invalid_at("common_tls_context", "must be set"));
    };
    scope.within("common_tls_context", |scope| {
        for (set, field) in
            [(common.tls_params.is_some(), "tls_params"), (common.custom_handshaker.is_some(), "custom_handshaker")]
        {
            refuse_if(set, field, scope)?;
        }
        identity(common, scope)?;
        validation(common.validation_context_type.as_ref(), scope)
    })
}

// === Identity ===

// The deprecated field counts only where the new one is absent: istiod up to 1.28 sends it alone, later ones both.
fn identity(common: &CommonTlsContext, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    if let Some(provider) = &common.tls_certificate_provider_instance {
        return provider_instance("tls_certificate_provider_instance", &provider.instance_name, scope);
    }
    if let Some(provider) = &common.tls_certificate_certificate_provider_instance {
        return provider_instance("tls_certificate_certificate_provider_instance", &provider.instance_name, scope);
    }
    // "unset: fine (plain TLS), but NACK if tls_certificates or tls_certificate_sds_secret_configs set" - A29
    refuse_if(!common.tls_certificates.is_empty(), "tls_certificates", scope)?;
    refuse_if(!common.tls_certificate_sds_secret_configs.is_empty(), "tls_certificate_sds_secret_configs", scope)
}

// "instance name not in bootstrap certificate_providers" is refused (A29).
fn provider_instance(field: &'static str, name: &str, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    if scope.context.certificate_providers.contains(name) {
        return Ok(());
    }
    let reason = format!("{name:?} is not among the bootstrap's certificate_providers");
    scope.within(field, |scope| Err(scope.invalid_at("instance_name", reason)))
}

// === Validation of the peer ===

fn validation(context: Option<&ValidationContextType>, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    match context {
        Some(ValidationContextType::ValidationContext(context)) => {
            scope.within("validation_context", |scope| match validation_context(context, scope)? {
                Roots::Known => Ok(()),
                Roots::Unset => Err(no_roots(scope)),
            })
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            scope.within("combined_validation_context", |scope| combined_context(combined, scope))
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(provider)) => {
            provider_instance("validation_context_certificate_provider_instance", &provider.instance_name, scope)
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(_)) => {
            refuse_if(true, "validation_context_sds_secret_config", scope)
        }
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            refuse_if(true, "validation_context_certificate_provider", scope)
        }
        // "no validation_context and no combined_validation_context.default_validation_context" - A29
        None => Err(scope.invalid_at("validation_context", "must be set")),
    }
}

fn combined_context(combined: &CombinedCertificateValidationContext, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    refuse_if(combined.validation_context_sds_secret_config.is_some(), "validation_context_sds_secret_config", scope)?;
    let Some(context) = &combined.default_validation_context else {
        return Err(scope.invalid_at("default_validation_context", "must be set"));
    };
    let roots = scope.within("default_validation_context", |scope| validation_context(context, scope))?;
    match (roots, &combined.validation_context_certificate_provider_instance) {
        (Roots::Known, _) => Ok(()),
        (Roots::Unset, Some(provider)) => {
            provider_instance("validation_context_certificate_provider_instance", &provider.instance_name, scope)
        }
        (Roots::Unset, None) => Err(scope.within("default_validation_context", |scope| no_roots(scope))),
    }
}

/// Whether a validation context says which roots it trusts.
enum Roots {
    Known,
    /// There may be a deprecated field beside the context.
    Unset,
}

fn no_roots(scope: &Scope<'_>) -> Invalid {
    scope.invalid_at("ca_certificate_provider_instance", "must be set")
}

fn validation_context(context: &CertificateValidationContext, scope: &mut Scope<'_>) -> Result<Roots, Invalid> {
    for (set, field) in [
        (!context.verify_certificate_spki.is_empty(), "verify_certificate_spki"),
        (!context.verify_certificate_hash.is_empty(), "verify_certificate_hash"),
        (context.require_signed_certificate_timestamp.is_some(), "require_signed_certificate_timestamp"),
        (context.crl.is_some(), "crl"),
        (context.custom_validator_config.is_some(), "custom_validator_config"),
    ] {
        refuse_if(set, field, scope)?;
    }
    for (index, matcher) in context.match_subject_alt_names.iter().enumerate() {
        scope.at("match_subject_alt_names", index, |scope| string(matcher.clone(), scope))?;
    }
    for (index, typed) in context.match_typed_subject_alt_names.iter().enumerate() {
        scope.at("match_typed_subject_alt_names", index, |scope| match &typed.matcher {
            Some(matcher) => scope.within("matcher", |scope| string(matcher.clone(), scope)).map(drop),
            None => Err(scope.invalid_at("matcher", "must be set")),
        })?;
    }
    match &context.ca_certificate_provider_instance {
        Some(provider) => {
            provider_instance("ca_certificate_provider_instance", &provider.instance_name, scope)?;
            Ok(Roots::Known)
        }
        // "system_root_certs present and ca_certificate_provider_instance unset: OS roots" - A82
        None if context.system_root_certs.is_some() => Ok(Roots::Known),
        None => Ok(Roots::Unset),
    }
}

// "Unknown field: ignore, unless ignoring it weakens security" - A29
fn refuse_if(set: bool, field: &'static str, scope: &Scope<'_>) -> Result<(), Invalid> {
    if set { Err(scope.invalid_at(field, "not supported: ignoring it would weaken security")) } else { Ok(()) }
}
