//! The report: one self-contained HTML file. It loads nothing, runs nothing, and can be mailed and printed.

use firedrill_model::log::Run;
use firedrill_model::receipt::{DelayHistogram, Measured, Receipt, ReceiptLine};
use firedrill_model::verdict::Expectation;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use super::digest::{self, ChangeRow, Headline, ProbeRow, Restored, StepRow};
use super::svg::{Svg, text_width};
use super::words::{self, Mark, Tone};
use super::{chart, graph};

const TEMPLATE: &str = include_str!("report.html.j2");
const CSS: &str = include_str!("report.css");

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "the HTML report of run {run} could not be made: {source}; its log is complete, `firedrill report` tries again"
)]
pub struct HtmlError {
    run: String,
    source: minijinja::Error,
}

/// All that the template may use.
#[derive(Serialize)]
struct Page<'a> {
    css: &'static str,
    title: &'a str,
    experiment: &'a str,
    system: &'a str,
    started: String,
    version: &'a str,
    head: Headline,
    tiles: Vec<Tile>,
    timeline: String,
    lanes: Vec<Lane>,
    windows: [&'static str; 3],
    probes: Vec<ProbeRow>,
    expectations: Vec<ExpectationRow>,
    radius: Option<RadiusCard>,
    steps: Vec<StepRow>,
    receipts: Vec<ReceiptCard>,
    restored: Restored,
    changes: Vec<ChangeRow>,
    unproven: &'a [String],
    notes: Vec<(String, &'a str)>,
    about: Vec<(String, String)>,
    replay: String,
}

#[derive(Serialize)]
struct Tile {
    label: &'static str,
    value: String,
    note: String,
    tone: Tone,
}

#[derive(Serialize)]
struct Lane {
    name: String,
    describe: String,
    tolerance: String,
    every: String,
    row: Option<ProbeRow>,
    picture: String,
}

#[derive(Serialize)]
struct ExpectationRow {
    what: String,
    reason: String,
    mark: Mark,
}

#[derive(Serialize)]
struct ReceiptCard {
    fault: String,
    target: String,
    step: usize,
    mark: Mark,
    says: String,
    lines: Vec<ReceiptLine>,
    counts: Vec<(&'static str, String)>,
    histogram: Option<String>,
}

#[derive(Serialize)]
struct RadiusCard {
    mark: Mark,
    reach: String,
    names: Vec<(&'static str, String, Tone)>,
    picture: Option<String>,
}

/// The report.
///
/// # Errors
/// When the template and the data do not fit together: a fault of this program, never of the run.
pub fn report(run: &Run) -> Result<String, HtmlError> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    // As XML wants it, too: characters that have no place in a document never get into one.
    env.set_formatter(|out, state, value| {
        if value.is_safe() || value.as_str().is_none() {
            return minijinja::escape_formatter(out, state, value);
        }
        Ok(out.write_str(&super::svg::escape(value.as_str().unwrap_or_default()))?)
    });
    let page = Value::from(Serde(page(run)));
    env.render_named_str("report.html", TEMPLATE, page).map_err(|source| HtmlError { run: run.id.clone(), source })
}

fn page(run: &Run) -> Page<'_> {
    let plan = &run.plan;
    let judgement = run.judgement.as_ref();
    Page {
        css: CSS,
        title: if plan.title.is_empty() { &plan.experiment } else { &plan.title },
        experiment: &plan.experiment,
        system: &plan.system,
        started: run.started.replacen('T', " ", 1),
        version: &run.version,
        head: digest::headline(run),
        tiles: tiles(run),
        timeline: chart::head(run),
        lanes: lanes(run),
        windows: ["before", "fault", "after"],
        probes: digest::probes(run),
        expectations: judgement.map(|j| j.expectations.iter().map(expectation).collect()).unwrap_or_default(),
        radius: radius(run),
        steps: digest::steps(run),
        receipts: run.receipts.iter().map(|(step, r)| receipt(*step, r)).collect(),
        restored: digest::restored(run),
        changes: digest::changes(run),
        unproven: judgement.map(|j| j.unproven.as_slice()).unwrap_or_default(),
        notes: run.notes.iter().map(|(at, text)| (words::moment(*at), text.as_str())).collect(),
        about: digest::about(run),
        replay: words::command_line(&run.replay),
    }
}

fn expectation(e: &Expectation) -> ExpectationRow {
    ExpectationRow { what: e.what.clone(), reason: e.reason.clone(), mark: e.verdict.into() }
}

/// The few numbers that most readers want.
fn tiles(run: &Run) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if let Some(judgement) = &run.judgement {
        let counted = |p: &&firedrill_model::verdict::ProbeJudgement| p.judged || !run.plan.judged;
        let worst = judgement.probes.iter().filter(counted).filter(|p| p.outage.is_some());
        let worst = worst.max_by_key(|p| p.outage.map(|o| o.lasted));
        let name = |index| digest::probe(run, index).map_or("?", |p| p.name.as_str()).to_owned();
        tiles.push(match worst {
            Some(p) => Tile {
                label: "Longest outage",
                value: words::outage(p.outage.as_ref()),
                note: name(p.probe),
                tone: Mark::from(p.verdict).tone,
            },
            None => {
                Tile { label: "Longest outage", value: "none".into(), note: "no bad sample".into(), tone: Tone::Plain }
            }
        });
        if judgement.radius.components > 1 && run.plan.judged {
            let mark = Mark::from(judgement.radius.containment);
            let value = format!("{} of {}", judgement.radius.observed.len(), judgement.radius.components);
            tiles.push(Tile { label: "Components moved", value, note: mark.word, tone: mark.tone });
        }
    }
    let (effects, tone) = digest::effects(run);
    let window = run
        .fault_window()
        .map_or_else(|| "never in force".into(), |(a, b)| format!("fault window {}", words::secs(b - a)));
    tiles.push(Tile { label: "Faults", value: effects, note: window, tone });
    let restored = digest::restored(run);
    let value = match restored.left.len() {
        0 if run.changes.is_empty() => "untouched".into(),
        0 if !restored.unknown.is_empty() => "not known".into(),
        0 => "restored".into(),
        n => format!("{n} left behind"),
    };
    tiles.push(Tile { label: "Host", value, note: restored.says, tone: restored.tone });
    tiles
}

fn lanes(run: &Run) -> Vec<Lane> {
    let mut rows = digest::probes(run);
    let lane = |(i, probe): (usize, &firedrill_model::run::ProbePlan)| Lane {
        name: probe.name.clone(),
        describe: probe.describe.clone(),
        tolerance: digest::tolerance(&probe.steady),
        every: format!("every {}, timeout {}", probe.every, probe.timeout),
        row: rows.iter().position(|r| r.index == i).map(|at| rows.remove(at)),
        picture: chart::lane(run, i),
    };
    run.plan.probes.iter().enumerate().map(lane).collect()
}

fn radius(run: &Run) -> Option<RadiusCard> {
    let radius = &run.judgement.as_ref()?.radius;
    if radius.components < 2 || !run.plan.judged {
        return None;
    }
    let mut names = vec![
        ("Declared", words::list(&radius.declared, "none"), Tone::Plain),
        ("Observed", words::list(&radius.observed, "none"), Tone::Plain),
    ];
    for (label, list, tone) in [
        ("Escaped to", &radius.escapes, Tone::Bad),
        ("Declared, not moved", &radius.over_predicted, Tone::Plain),
        ("Without a probe", &radius.unprobed, Tone::Unknown),
    ] {
        if !list.is_empty() {
            names.push((label, words::list(list, "none"), tone));
        }
    }
    let picture = graph::picture(run);
    Some(RadiusCard { mark: radius.containment.into(), reach: digest::reach(run).unwrap_or_default(), names, picture })
}

fn receipt(step: usize, receipt: &Receipt) -> ReceiptCard {
    let mut counts = Vec::new();
    let mut delays: Vec<&DelayHistogram> = Vec::new();
    for measured in &receipt.measured {
        match measured {
            Measured::Packets(p) => {
                counts.extend(
                    [("matched", p.matched), ("dropped", p.dropped), ("delayed", p.delayed)]
                        .map(|(l, n)| (l, n.to_string())),
                );
                if p.bypassed > 0 {
                    counts.push(("let through", p.bypassed.to_string()));
                }
                delays.push(&p.applied);
            }
            Measured::Calls(c) => {
                counts.extend([("calls", c.matched), ("failed", c.failed)].map(|(l, n)| (l, n.to_string())));
            }
            Measured::Proxy(p) => {
                let numbers =
                    [("matched", p.matched), ("carried", p.connections), ("bytes", p.bytes), ("reset", p.reset)];
                counts.extend(numbers.map(|(l, n)| (l, n.to_string())));
            }
            Measured::Kill(k) => {
                counts.push(("signalled", k.signalled.to_string()));
                counts.push(("gone", k.gone.to_string()));
                counts.extend(k.slowest_end.map(|t| ("slowest end", words::span(t))));
                if k.again > 0 {
                    counts.push(("killed again", k.again.to_string()));
                }
            }
            Measured::Reset(r) => {
                counts.push(("matched", r.matched.to_string()));
                counts.push(("destroyed", r.destroyed.to_string()));
                counts.push(("rounds", r.rounds.to_string()));
            }
            Measured::State { seen, held, .. } => {
                counts.push(("read back", seen.clone()));
                counts.push(("held", words::span(*held)));
            }
        }
    }
    ReceiptCard {
        fault: receipt.fault.clone(),
        target: receipt.target.clone(),
        step: step + 1,
        mark: receipt.effect.into(),
        says: words::capital(&receipt.says),
        lines: receipt.lines.clone(),
        counts,
        histogram: histogram(&delays),
    }
}

/// How long packets were really held: bars on a logarithmic scale. `None` when none was.
fn histogram(delays: &[&DelayHistogram]) -> Option<String> {
    let mut buckets: Vec<(u64, u64)> = Vec::new();
    for (edge, count) in delays.iter().flat_map(|d| &d.buckets) {
        match buckets.iter_mut().find(|(e, _)| e == edge) {
            Some((_, n)) => *n += count,
            None => buckets.push((*edge, *count)),
        }
    }
    buckets.sort_unstable();
    let most = buckets.iter().map(|b| b.1).max().filter(|n| *n > 0)?;
    let all: u64 = buckets.iter().map(|b| b.1).sum();
    // The log gives lower edges only; the closest pair tells how wide a bucket is.
    let edge = |ns: u64| ns.max(1) as f64;
    let ratio = buckets.windows(2).map(|w| edge(w[1].0) / edge(w[0].0)).fold(f64::INFINITY, f64::min);
    let ratio = if ratio.is_finite() && ratio > 1.0 { ratio } else { 2.0 };
    // Buckets may be as wide as an octave: the outer ones are drawn as far as delays were really seen.
    let (first, last) = (edge(buckets.first()?.0), edge(buckets.last()?.0));
    let least = delays.iter().map(|d| d.min_ns).filter(|ns| *ns > 0).min().map_or(first, edge);
    let greatest = delays.iter().map(|d| d.max_ns).max().map_or(last, edge);
    let low = least.clamp(first, first * ratio * 0.999);
    let high = greatest.clamp(last * 1.001, last * ratio);
    let (width, height, base) = (460.0, 132.0, 108.0);
    let x = |ns: f64| 8.0 + (ns / low).ln() / (high / low).ln() * (width - 16.0);
    let mut svg = Svg::new("histogram", width, height, &format!("Histogram of {all} measured delays"));
    for (from, count) in &buckets {
        let (from, to) = (edge(*from).max(low), (edge(*from) * ratio).min(high));
        let (a, b) = (x(from), x(to));
        let h = (*count as f64 / most as f64 * (base - 20.0)).max(if *count > 0 { 1.5 } else { 0.0 });
        let title = format!("{} to {}: {count} packets", words::ms(from / 1e6), words::ms(to / 1e6));
        svg.rect("bar", (a + 0.5, base - h, (b - a - 1.0).max(1.0), h), 1.5, Some(&title));
    }
    svg.line("tick", (8.0, base + 0.5), (width - 8.0, base + 0.5));
    let mut free = 0.0;
    for ns in buckets.iter().map(|b| edge(b.0).max(low)).chain([high]) {
        let label = words::ms(ns / 1e6);
        let half = text_width(&label) / 2.0 + 3.0;
        let at = x(ns).clamp(half, width - half);
        if at - half >= free {
            svg.text("axis", at, base + 18.0, "middle", &label);
            free = at + half + 10.0;
        }
    }
    svg.text("axis", 8.0, 12.0, "start", &format!("{all} packets, by the delay they were really given"));
    Some(svg.finish())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// Fails where an element is not closed, an attribute not quoted or a text not escaped.
    fn assert_well_formed(name: &str, html: &str) {
        let mut reader = quick_xml::Reader::from_str(html);
        reader.config_mut().check_end_names = true;
        let mut depth = 0;
        loop {
            match reader.read_event() {
                Ok(quick_xml::events::Event::Eof) => break,
                Ok(quick_xml::events::Event::Start(e)) => {
                    depth += 1;
                    for attribute in e.attributes() {
                        attribute.unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                }
                Ok(quick_xml::events::Event::End(_)) => depth -= 1,
                Ok(_) => {}
                Err(error) => panic!("{name}, byte {}: {error}", reader.error_position()),
            }
        }
        assert_eq!(depth, 0, "{name}: elements left open");
    }

    #[test]
    fn every_report_is_well_formed_and_begins_with_the_finding() {
        for (name, run) in sample::all() {
            let html = report(&run).expect(name);
            assert_well_formed(name, &html);
            let body = html.split_once("<body").expect("a body").1;
            let finding = super::super::svg::escape(&digest::headline(&run).finding);
            let at = body.find(&finding).unwrap_or_else(|| panic!("{name}: no finding"));
            assert!(at < body.find("<h2").expect("sections"), "{name}: the finding is not first");
            if let Some(folder) = std::env::var_os("REPORTS") {
                std::fs::write(std::path::Path::new(&folder).join(format!("{name}.html")), html).expect("written");
            }
        }
    }

    #[test]
    fn a_report_loads_nothing_and_runs_nothing() {
        let html = report(&sample::shared_store()).expect("made");
        // The name of a namespace of XML is no address that anything is loaded from.
        let html = html.replace("http://www.w3.org/2000/svg", "");
        for word in ["<script", " src=", "<link", "@import", "url(", "<iframe", "<img"] {
            assert!(!html.contains(word), "{word}");
        }
        assert!(html.contains("default-src 'none'"));
    }

    #[test]
    fn text_from_outside_stays_text() {
        let evil = "</title></svg><script>alert(1)</script>\" onmouseover='x' {{ 7777*7777 }} \u{1b}[31m";
        let mut run = sample::shared_store();
        run.id = evil.into();
        run.replay.push(evil.into());
        run.plan.title = evil.into();
        run.plan.experiment = evil.into();
        run.plan.components[0].name = evil.into();
        run.plan.probes[0].name = evil.into();
        run.plan.probes[0].describe = evil.into();
        run.plan.steps[0].targets[0].name = evil.into();
        run.host.kernel = evil.into();
        run.notes.push((1.0, evil.into()));
        run.changes[0].reverted = Some((1.0, evil.into(), Some(evil.into())));
        run.receipts[0].1.says = evil.into();
        run.receipts[0].1.lines[0].applied = evil.into();
        for sample in &mut run.samples[0] {
            sample.outcome =
                firedrill_model::event::Outcome::Bad(firedrill_model::event::Bad { ms: 3.0, why: evil.into() });
        }
        let judgement = run.judgement.as_mut().expect("judged");
        judgement.finding = evil.into();
        judgement.expectations[0].reason = evil.into();
        judgement.probes[0].reason = evil.into();
        judgement.unproven.push(evil.into());
        let html = report(&run).expect("made");
        assert_well_formed("evil", &html);
        assert!(!html.contains("<script") && !html.contains("onmouseover='") && !html.contains('\u{1b}'));
        assert!(!html.contains("60481729"), "a template in a name was evaluated");
    }

    #[test]
    fn missing_samples_are_said_and_drawn() {
        let run = sample::shared_store();
        assert!(digest::probes(&run).iter().any(|p| p.windows.iter().any(|w| w.missing > 0)));
        let html = report(&run).expect("made");
        assert!(html.contains("20 not taken") && html.contains(r#"class="missed""#));
    }
}
