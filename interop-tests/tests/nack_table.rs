//! Every rule of the NACK table refuses its bad resource at the named field, and only that one.

use bytes::Bytes;
use interop_tests::nack_table::{CERTIFICATE_PROVIDERS, rows};
use mesh_xds::{
    control_plane::proto::google::protobuf::Any,
    decode::{DecodeContext, decode},
    resource::{Kind, Received},
};
use std::collections::HashSet;

fn received(kind: Kind, any: &Any) -> Received {
    let context = DecodeContext {
        certificate_providers: CERTIFICATE_PROVIDERS.map(str::to_owned).into(),
        ..DecodeContext::default()
    };
    decode(kind, &any.type_url, &Bytes::from(any.value.clone()), &context)
}

#[test]
fn each_rule_refuses_the_bad_resource_at_its_field_and_takes_its_twin() {
    let mut failures = Vec::new();
    for row in rows() {
        match received(row.kind, &row.bad).value {
            Ok(_) => failures.push(format!("{}: the bad one was taken", row.rule)),
            Err(invalid) if invalid.path != row.path => {
                failures.push(format!("{}: refused at {:?} and not {:?}: {invalid}", row.rule, invalid.path, row.path));
            }
            Err(invalid) => assert!(!invalid.reason.is_empty(), "{}", row.rule),
        }
        if let Err(invalid) = received(row.kind, &row.good).value {
            failures.push(format!("{}: the good one was refused: {invalid}", row.rule));
        }
    }
    assert!(failures.is_empty(), "{} rules fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_table_has_many_distinct_rules() {
    let rows = rows();
    let rules: HashSet<_> = rows.iter().map(|row| (row.kind, &row.rule)).collect();
    assert_eq!(rules.len(), rows.len(), "a rule is there twice");
    let places: HashSet<_> = rows.iter().map(|row| (row.kind, &row.path)).collect();
    assert!(places.len() >= 60, "only {} fields are covered", places.len());
}

#[test]
fn a_refused_resource_still_tells_its_name() {
    for row in rows().into_iter().filter(|row| !["name", "cluster_name"].contains(&row.path.as_str())) {
        assert!(received(row.kind, &row.bad).name.is_some(), "{}", row.rule);
    }
}
