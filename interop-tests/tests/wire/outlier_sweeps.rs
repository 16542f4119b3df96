//! Outlier detection over the wire: whom the sweep at the end of an interval ejects, and which one lets it return (A50).
//!
//! Tests leap over intervals, and wait for none. Failures in a row are NOT tested here; `outlier_detection` does.

use crate::{
    crowd::Crowd,
    features::{Call, World, check, features, grpc},
    mesh::soak,
    outlier_detection::{a_is_out, bad_a, ejected, five},
    rig::until,
};

const CALLERS: u64 = 16;

/// Leaps over an interval of so many seconds: how many endpoints are out after its sweep.
async fn swept(world: &World, seconds: u64) -> usize {
    world.leap(seconds).await;
    // Until then the sweep is over.
    world.calls(1, grpc()).await;
    ejected(world)
}

/// An interval of so many calls, which is 1000 s long: however busy the machine is, no sweep comes in between.
async fn interval(world: &World, count: usize, call: Call) -> usize {
    world.calls(count, call).await;
    swept(world, 1000).await
}

fn bad_a_and_b() -> Call {
    grpc().header("rpc-behavior", "hostname=a error-code-14,hostname=b error-code-14")
}

features! {
    success_rate {
        row: "outlier detection: an empty message ejects by success rate; the connection stays, and the endpoint returns in time",
        source: "A50, `Cluster.outlier_detection`",
        config: five!("outlier_detection: {}"),
        strip: [("/clusters/a/outlier_detection", "")],
        |world| {
            world.ready("a", 5).await?;
            // All of an interval, which is 10 s here, for its calls.
            check(swept(world, 10).await == 0, "nobody fails")?;
            world.calls(600, bad_a()).await;
            check(swept(world, 10).await == 1, "one endpoint is ejected at the next sweep")?;
            a_is_out(world).await?;
            world.leap(31).await;
            until("it is back", || ejected(world) == 0).await;
            let counts = world.calls(100, grpc()).await;
            check(counts.contains_key("a"), format!("{counts:?}"))
        }
    }

    failure_percentage {
        row: "outlier detection: by the percentage of failures",
        source: "A50, `OutlierDetection.failure_percentage_threshold`, `.enforcing_failure_percentage`",
        config: five!("outlier_detection: {interval: 1000s, enforcing_success_rate: 0, enforcing_failure_percentage: 100, failure_percentage_threshold: 50}"),
        strip: [("/clusters/a/outlier_detection/enforcing_failure_percentage", "")],
        |world| {
            world.ready("a", 5).await?;
            check(interval(world, 600, bad_a()).await == 1, "one endpoint is ejected at the first sweep")?;
            a_is_out(world).await
        }
    }

    failures_above_the_threshold {
        row: "outlier detection: a percentage of failures is above its threshold, or it is none",
        source: "A50, `OutlierDetection.failure_percentage_threshold`",
        config: five!("outlier_detection: {interval: 1000s, enforcing_success_rate: 0, enforcing_failure_percentage: 100, failure_percentage_threshold: 85}"),
        strip: [("/clusters/a/outlier_detection/failure_percentage_threshold", "86")],
        |world| {
            world.ready("a", 5).await?;
            let mut before = world.a.counters();
            for (failures, out) in [(85, 0), (86, 1)] {
                while world.a.counters().failed - before.failed < failures {
                    let _ = world.call(bad_a()).await;
                }
                while world.a.counters().calls - before.calls < 100 {
                    world.call(grpc()).await?;
                }
                world.leap(1000).await;
                before = world.a.counters();
                world.call(grpc()).await?;
                check(ejected(world) == out, format!("{failures} of 100: {out} out, and not {}", ejected(world)))?;
            }
            Ok(())
        }
    }

    // With n equal ones and one that is not, that one is √(n - 1) deviations away from the mean: 1.73 of four.
    four_endpoints {
        row: "outlier detection: of four endpoints none is ever 1.9 deviations away, whatever it does; a lower factor finds it",
        source: "A50, `OutlierDetection.success_rate_minimum_hosts`, `.success_rate_stdev_factor`",
        config: "{clusters: {a: {outlier_detection: {interval: 1000s, success_rate_minimum_hosts: 4}}}, endpoints: {a: {endpoints: [
            {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}, {$d}]}]}}}",
        strip: [("/clusters/a/outlier_detection/success_rate_minimum_hosts", "")],
        |world| {
            world.ready("a", 4).await?;
            for _ in 0..3 {
                check(interval(world, 480, bad_a()).await == 0, "none is an outlier")?;
            }
            world.update("/clusters/a/outlier_detection/success_rate_stdev_factor", "1700").await?;
            check(interval(world, 480, bad_a()).await == 1, "1.73 deviations are more than 1.7")?;
            a_is_out(world).await
        }
    }

    over_all_priorities {
        row: "outlier detection: over the endpoints of all priorities, of which none alone has enough",
        source: "A75, `OutlierDetection.success_rate_minimum_hosts`",
        // What fails at a is repeated in the other priority, so that all five have calls.
        config: "{clusters: {a: {outlier_detection: {success_rate_minimum_hosts: 5, success_rate_request_volume: 20}}},
            endpoints: {a: {endpoints: [
                {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}]},
                {locality: {region: s}, load_balancing_weight: 1, priority: 1, lb_endpoints: [{$d}, {$e}]}]}},
            routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 1,
                retry_back_off: {base_interval: 0.001s},
                retry_priority: {name: envoy.retry_priorities.previous_priorities, typed_config: {
                    '@type': type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig,
                    update_frequency: 1}}}}}]}",
        strip: [("/endpoints/a/endpoints/1", "")],
        |world| {
            world.ready("a", 3).await?;
            // One retry of a's connects the other priority for those to come.
            world.calls(9, bad_a()).await;
            let out = interval(world, 450, bad_a()).await;
            check(out == 1, format!("one out, and not {out}"))?;
            let [a, b, c, d, e, _] = world.served();
            check([a, b, c, d, e].iter().all(|calls| *calls >= 20), format!("enough calls for each: {:?}", world.served()))?;
            a_is_out(world).await
        }
    }

    one_at_a_time {
        row: "outlier detection: two bad ones of five are out one at a time",
        source: "A50, `OutlierDetection.max_ejection_percent`",
        config: five!("outlier_detection: {interval: 1000s, base_ejection_time: 3000s, enforcing_failure_percentage: 100}"),
        strip: [("/clusters/a/outlier_detection/max_ejection_percent", "100")],
        |world| {
            world.ready("a", 5).await?;
            for sweep in 0..3 {
                let out = interval(world, 600, bad_a_and_b()).await;
                check(out == 1, format!("one out after sweep {sweep}, and not {out}"))?;
            }
            Ok(())
        }
    }

    a_fifth_by_success_rate {
        row: "outlier detection: an endpoint that fails a fifth of its calls under load is out for longer each time, and forgiven in time",
        source: "A50, `OutlierDetection.interval`, `.base_ejection_time`, `.max_ejection_time`",
        config: five!("outlier_detection: {interval: 200s, base_ejection_time: 450s, max_ejection_time: 2000s}"),
        strip: [("/clusters/a/outlier_detection/base_ejection_time", "")],
        // Of five any deviation is two deviations: it takes one failure among the hundred calls that count at least.
        |world| { comes_and_goes(world, soak(5 * 120)).await }
    }

    a_fifth_by_failure_percentage {
        row: "outlier detection: the same by the percentage of failures",
        source: "A50, `OutlierDetection.failure_percentage_request_volume`, `.failure_percentage_threshold`",
        config: five!("outlier_detection: {interval: 200s, base_ejection_time: 450s, max_ejection_time: 2000s, enforcing_success_rate: 0,
            enforcing_failure_percentage: 100, failure_percentage_threshold: 10, failure_percentage_request_volume: 300}"),
        strip: [("/clusters/a/outlier_detection/failure_percentage_threshold", "")],
        // More than a tenth is found if so many of each of five are made: n = 25·p(1−p)/t², with p = 0.2 and t = 0.1.
        |world| { comes_and_goes(world, soak(5 * 400)).await }
    }
}

// === Under load ===

fn a_fifth_fails_at_a() -> Call {
    if fastrand::u32(..5) == 0 { bad_a() } else { grpc() }
}

/// Calls go on all the time, and the clock leaps over intervals of 200 s; an interval in which a endpoint is to be found
/// out has `enough` calls.
async fn comes_and_goes(world: &World, enough: u32) -> Result<(), String> {
    let enough = u64::from(enough);
    world.ready("a", 5).await?;
    let bad = Crowd::start(&world.channel, CALLERS as usize, a_fifth_fails_at_a);
    // 450 s are over at the third sweep from then.
    is_out_for(world, &bad, enough, 3).await?;
    is_back(world, &bad).await?;
    // It has not mended its ways: twice as long, 900 s.
    is_out_for(world, &bad, enough, 5).await?;
    bad.stops();
    bad.ended().await;
    let well = Crowd::start(&world.channel, CALLERS as usize, grpc);
    is_back(world, &well).await?;
    // Two intervals without failures make up for both.
    for _ in 0..2 {
        check(sweep(world, &well, enough).await == 0, "nobody fails")?;
    }
    well.stops();
    check(well.ended().await.failed == 0, "no call fails")?;
    let bad = Crowd::start(&world.channel, CALLERS as usize, a_fifth_fails_at_a);
    is_out_for(world, &bad, enough, 3).await?;
    is_back(world, &bad).await
}

/// Goes on until `count` calls were made and the sweep of their interval is over: how many endpoints are out.
async fn sweep(world: &World, crowd: &Crowd, count: u64) -> usize {
    crowd.goes_on(count).await;
    world.leap(200).await;
    // Those that were in flight then, and those that were picked before the sweep's outcome was known.
    crowd.goes_on(4 * CALLERS).await;
    ejected(world)
}

/// Fails unless a is found out, and gets no call while the others get as many each, until so many sweeps are almost over.
async fn is_out_for(world: &World, crowd: &Crowd, enough: u64, sweeps: u32) -> Result<(), String> {
    let out = sweep(world, crowd, enough).await;
    check(out == 1, format!("one out, and not {out}"))?;
    let before = world.served();
    for number in 1..sweeps {
        let out = sweep(world, crowd, 200).await;
        check(out == 1, format!("one out after sweep {number} of {sweeps}, and not {out}"))?;
    }
    let mut served = world.served();
    served.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
    let [a, others @ .., _f] = served;
    let share = others.iter().sum::<u64>() / 4;
    // In turn: those in flight are the difference.
    let even = others.iter().all(|calls| calls.abs_diff(share) <= CALLERS);
    check(a == 0 && even, format!("nothing for the first, and as much for the next four: {served:?}"))
}

/// Fails unless the next sweep lets a return.
async fn is_back(world: &World, crowd: &Crowd) -> Result<(), String> {
    check(sweep(world, crowd, 200).await == 0, "it is back")
}
