//! The page that leads to the reports of all drills. Pure: text from outcomes.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde_json::json;

use super::conclude::Outcome;
use super::drills::Expected;
use super::survive::Survival;
use crate::render::words::{self, Mark};

const CSS: &str = include_str!("../render/report.css");
const TEMPLATE: &str = include_str!("index.html.j2");

/// Makes the page. It lies in a folder beside those of the runs.
///
/// # Errors
/// When the template has a mistake, which a test rules out.
pub fn page(
    outcomes: &[Outcome],
    findings: &[String],
    survival: Option<&Survival>,
    left_over: &[String],
    when: &str,
) -> Result<String, minijinja::Error> {
    let rows: Vec<_> = outcomes
        .iter()
        .map(|o| {
            let folder = o.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            json!({
                "title": o.run.plan.title,
                "does": o.drill.does,
                "mark": Mark::from(o.verdict()),
                "expected": expected(o.drill.expected),
                "as_expected": o.as_expected(),
                "finding": o.finding(),
                "link": format!("../{folder}/report.html"),
                "lasted": words::secs(o.run.last_event),
            })
        })
        .collect();
    let survival = survival.map(|s| {
        json!({
            "clean_after": s.clean_after.map(|d| words::secs(d.as_secs_f64())),
            "undone": s.undone,
            "differences": s.differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "compared": s.compared,
            "bad": s.bad,
        })
    });
    let page = json!({
        "css": CSS,
        "rows": rows,
        "findings": findings,
        "survival": survival,
        "left_over": left_over,
        "when": when,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.render_named_str("index.html", TEMPLATE, Value::from(Serde(page)))
}

/// What was expected, in a word.
pub fn expected(expected: Expected) -> String {
    match expected {
        Expected::Is(verdict) => verdict.to_string(),
        Expected::AsMeasured => "as measured".into(),
    }
}
