use super::*;
use crate::filter::{Filter, FilterRequest, Verdict};
use mesh_xds::resource::{AbortSource, CustomFilter, FaultAbort, FaultPercentage, FilterConfig, HttpFault, Invalid};

struct Nothing;

impl Filter for Nothing {
    fn request<'a>(&'a self, _: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        Verdict::Continue
    }
}

/// Never decoded here.
#[derive(Debug, PartialEq)]
struct Unknown;

impl FilterConfig for Unknown {
    const TYPE_URL: &'static str = "type.googleapis.com/test.Unknown";

    fn decode(_: &[u8]) -> Result<Self, Invalid> {
        Ok(Self)
    }
}

fn fault(code: u8) -> HttpFilterConfig {
    let percentage = FaultPercentage { numerator: 1, denominator: 100 };
    let abort = Some(FaultAbort { source: AbortSource::Grpc(code), percentage, text: None });
    HttpFilterConfig::Fault(Arc::new(HttpFault { abort, ..HttpFault::default() }))
}

fn filter(name: &str, code: u8) -> HttpFilter {
    HttpFilter { name: name.to_owned(), config: fault(code), disabled: false }
}

fn says<const N: usize>(entries: [(&str, FilterOverride); N]) -> FilterOverrides {
    entries.into_iter().map(|(name, says)| (name.to_owned(), says)).collect()
}

fn config(name: &str, code: u8) -> (&str, FilterOverride) {
    (name, FilterOverride::Config(fault(code)))
}

/// The configurations of a chain, in order, by the code that they abort with.
fn codes(level: &Level) -> Vec<u8> {
    let code = |instance: &Arc<Instance>| match &instance.config {
        Some(HttpFilterConfig::Fault(fault)) => match fault.abort.as_ref().map(|abort| abort.source) {
            Some(AbortSource::Grpc(code)) => code,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let on = level.instances.iter().zip(&level.is_on).filter(|(_, is_on)| **is_on);
    on.map(|(instance, _)| code(instance)).collect()
}

/// The levels of a virtual host with these routes.
fn build(
    declared: &[HttpFilter],
    host: &FilterOverrides,
    routes: &[FilterOverrides],
    before: &[Arc<Level>],
) -> (Vec<Arc<Level>>, Vec<Arc<Level>>) {
    let makers = Makers::default();
    let mut builder = LevelBuilder::new(declared, &makers, before);
    let root = builder.root();
    let host = builder.below(&root, host);
    let routes = routes.iter().map(|route| builder.below(&host, route)).collect();
    (routes, builder.finish())
}

#[test]
fn the_most_specific_one_wins_and_replaces() {
    let declared = [filter("f", 1), filter("g", 2)];
    let routes = [
        says([]),
        says([config("f", 4)]),
        says([("f", FilterOverride::Disabled)]),
        says([("f", FilterOverride::Enabled)]),
        says([config("nope", 9)]),
    ];
    let (levels, _) = build(&declared, &says([config("f", 3)]), &routes, &[]);
    let found: Vec<_> = levels.iter().map(|level| codes(level)).collect();
    assert_eq!(found, [vec![3, 2], vec![4, 2], vec![2], vec![3, 2], vec![3, 2]]);
    assert!(
        levels[0].chain().is_some_and(|chain| levels[0].chain.as_ref().is_some_and(|own| Arc::ptr_eq(own, &chain)))
    );
}

#[test]
fn a_filter_that_is_off_is_switched_on_below() {
    let declared = [HttpFilter { disabled: true, ..filter("f", 1) }];
    let routes = [
        says([]),
        says([("f", FilterOverride::Enabled)]),
        says([config("f", 4)]),
        says([("f", FilterOverride::Disabled)]),
    ];
    let (levels, _) = build(&declared, &says([]), &routes, &[]);
    assert_eq!(levels.iter().map(|level| codes(level)).collect::<Vec<_>>(), [vec![], vec![1], vec![4], vec![]]);
    assert_eq!(levels.iter().filter(|level| level.chain.is_some()).count(), 2);
    // Off for the virtual host, and on again for a route, with the configuration that it brings or the declared one.
    let (levels, _) = build(&[filter("f", 1)], &says([("f", FilterOverride::Disabled)]), &routes, &[]);
    assert_eq!(levels.iter().map(|level| codes(level)).collect::<Vec<_>>(), [vec![], vec![1], vec![4], vec![]]);
}

#[test]
fn a_fault_filter_without_faults_is_no_work() {
    let inert = HttpFilter { config: HttpFilterConfig::Fault(Arc::default()), ..filter("f", 1) };
    let (levels, _) = build(&[inert], &says([]), &[says([]), says([config("f", 4)])], &[]);
    assert!(levels[0].chain.is_none());
    assert!(levels[1].chain.is_some());
}

#[test]
fn what_stayed_keeps_its_identity() {
    let declared = [filter("f", 1), filter("g", 2)];
    let host = says([config("g", 3)]);
    let routes = [says([config("f", 4)]), says([config("f", 5)]), says([config("f", 5)])];
    let (old, before) = build(&declared, &host, &routes, &[]);
    // Two equal overrides are two filters all the same.
    assert!(!Arc::ptr_eq(&old[1].instances[0], &old[2].instances[0]));
    let same = |new: &Level, old: &Level| match (&new.chain, &old.chain) {
        (Some(new), Some(old)) => Arc::ptr_eq(new, old),
        _ => false,
    };

    let (new, _) = build(&declared, &host, &routes, &before);
    assert!(new.iter().zip(&old).all(|(new, old)| same(new, old)));

    // One is put in front, one changes, and the others stay.
    let moved = [says([config("f", 9)]), says([config("f", 4)]), says([config("f", 5)]), says([config("f", 6)])];
    let (new, _) = build(&declared, &host, &moved, &before);
    assert!(same(&new[1], &old[0]) && same(&new[2], &old[1]) && !same(&new[3], &old[2]));
    // What a route does not say, its virtual host does, by the same instance as before.
    assert!(Arc::ptr_eq(&new[3].instances[1], &old[2].instances[1]));

    // A change of one filter leaves the other one alone.
    let (new, _) = build(&[filter("f", 1), filter("g", 7)], &says([]), &[says([])], &before);
    let root = &before[0];
    assert!(Arc::ptr_eq(&new[0].instances[0], &root.instances[0]));
    assert!(!Arc::ptr_eq(&new[0].instances[1], &root.instances[1]));
}

#[test]
fn an_override_of_another_type_can_not_stand_in() {
    let mut makers = Makers::default();
    makers.add(|_: &Unknown| Nothing);
    let declared = [filter("f", 1)];
    let custom = HttpFilterConfig::Custom(CustomFilter::new(Unknown));
    let mut builder = LevelBuilder::new(&declared, &makers, &[]);
    let root = builder.root();
    let level = builder.below(&root, &says([("f", FilterOverride::Config(custom.clone()))]));
    assert_eq!(codes(&level), [1]);

    // A type that nobody here makes filters of lets no call pass.
    let declared = [HttpFilter { name: "f".to_owned(), config: custom, disabled: false }];
    let none = Makers::default();
    let mut builder = LevelBuilder::new(&declared, &none, &[]);
    assert!(builder.root().chain().is_some());
}
