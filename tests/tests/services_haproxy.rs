//! HAProxy before three web servers, under the shipped experiments.

mod services;

use firedrill_tests::stage::haproxy;
use services::drill;

#[test]
fn one_dead_web_server_is_not_noticed() {
    let Some(outcome) = drill("haproxy", haproxy::raise, haproxy::EXPERIMENTS, "lose-one-web") else { return };
    outcome.expect("held", 0);
    // Measured: at most one failed request.
    assert!(outcome.probe("front/page")["fault"]["bad"].as_u64() <= Some(3), "{}", outcome.told());
    assert!(outcome.outage("front/page") < 1.0, "{}", outcome.told());
    assert_eq!(outcome.json["radius"]["observed"], serde_json::json!(["web"]));
}

#[test]
fn a_web_server_without_network_costs_a_connection_time_out_and_no_error() {
    let Some(outcome) = drill("haproxy", haproxy::raise, haproxy::EXPERIMENTS, "cut-off-one-web") else { return };
    outcome.expect("held", 0);
    assert!(outcome.outage("front/page") < 1.0, "{}", outcome.told());
    let p99 = outcome.probe("front/page")["fault"]["p99_ms"].as_f64();
    assert!(p99 >= Some(55.0), "`timeout connect` is 60 ms: {p99:?}");
}

#[test]
fn a_hanging_web_server_makes_the_page_slow_without_an_error() {
    let Some(outcome) = drill("haproxy", haproxy::raise, haproxy::EXPERIMENTS, "hang-one-web") else { return };
    outcome.expect("degraded", 1);
    let page = outcome.probe("front/page");
    assert!(page["fault"]["bad"].as_u64() <= Some(3), "held on errors: {}", outcome.told());
    assert!(page["fault"]["p95_ms"].as_f64() >= Some(350.0), "`timeout server` is 400 ms: {}", outcome.told());
}

#[test]
fn without_web_servers_there_is_no_page_until_they_are_back() {
    let Some(outcome) = drill("haproxy", haproxy::raise, haproxy::EXPERIMENTS, "lose-all-web") else { return };
    outcome.expect("broken", 1);
    assert!(outcome.outage("front/page") > 4.0, "{}", outcome.told());
    assert_eq!(outcome.probe("front/page")["healed"], "after", "{}", outcome.told());
    assert_eq!(outcome.json["radius"]["escapes"], serde_json::json!(["front"]));
}
