//! The timeline: phases and steps above, one lane for each probe below, all on one time axis.

use std::fmt::Write as _;

use firedrill_model::event::{Outcome, Phase, Sample};
use firedrill_model::log::Run;

use super::svg::{Px, Svg, text_width, time_label, time_ticks};
use super::{digest, words};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
/// One bucket of samples is this wide.
const BUCKET: f64 = 4.0;

const LANE: f64 = 118.0;
/// Top and height of the strip that shows bad and missing samples.
const STRIP: (f64, f64) = (4.0, 12.0);
/// Top and bottom of the plot of latencies.
const PLOT: (f64, f64) = (24.0, 112.0);

/// The time axis of a run.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    end: f64,
}

impl Axis {
    /// From the run's start to the end of what was observed.
    pub fn of(run: &Run) -> Self {
        let sampled = run.samples.iter().filter_map(|s| s.last()).map(|s| s.due).fold(0.0, f64::max);
        let end = run.began(Phase::Verdict).unwrap_or(run.last_event).max(sampled);
        Self { end: end.max(0.1) }
    }

    fn x(self, at: f64) -> f64 {
        LEFT + (at / self.end).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn span(self, from: f64, to: f64) -> (f64, f64) {
        (self.x(from), (self.x(to) - self.x(from)).max(1.0))
    }

    fn buckets(self) -> usize {
        ((WIDTH - LEFT - RIGHT) / BUCKET) as usize
    }
}

/// Phases with their beginning and end.
fn phases(run: &Run, axis: Axis) -> Vec<(Phase, f64, f64)> {
    let ends = run.phases.iter().skip(1).map(|(_, at)| *at).chain([axis.end]);
    run.phases
        .iter()
        .zip(ends)
        .filter(|((phase, _), _)| *phase != Phase::Verdict)
        .map(|((phase, from), to)| (*phase, *from, to))
        .collect()
}

/// The part above the lanes: phases, steps and the time axis.
pub fn head(run: &Run) -> String {
    let axis = Axis::of(run);
    let steps: Vec<_> = digest::steps(run).into_iter().zip(&run.steps).collect();
    let height = 26.0 + 22.0 * steps.len() as f64 + 22.0;
    let parts: Vec<String> =
        phases(run, axis).iter().map(|(p, from, to)| format!("{} {}", p.name(), words::secs(to - from))).collect();
    let mut svg = Svg::new("head", WIDTH, height, &format!("Phases: {}", parts.join(", ")));
    let mut free = 0.0;
    for (phase, from, to) in phases(run, axis) {
        let (x, w) = axis.span(from, to);
        let title = format!("{}: {} to {}", phase.name(), words::moment(from), words::moment(to));
        svg.rect(&format!("band {}", phase.name()), (x, 2.0, w, 20.0), 0.0, Some(&title));
        if text_width(phase.name()) + 8.0 < w && x >= free {
            svg.text("phase", x + 6.0, 16.0, "start", phase.name());
            free = x + text_width(phase.name()) + 8.0;
        }
    }
    for (i, (row, went)) in steps.iter().enumerate() {
        let y = 26.0 + 22.0 * i as f64;
        let label = format!("{} · {} on {}", row.number, row.faults, row.targets);
        let Some(from) = went.in_force.or(went.began) else {
            svg.text("faint", LEFT, y + 14.0, "start", &format!("{label} (never begun)"));
            continue;
        };
        let (x, w) = axis.span(from, went.ended.unwrap_or(axis.end));
        svg.rect("step", (x, y, w, 18.0), 3.0, Some(&format!("{label}: {}", row.real)));
        let need = text_width(&label);
        if need + 12.0 < w {
            svg.text("on-step", x + 6.0, y + 13.0, "start", &label);
        } else if x + w + need + 8.0 < WIDTH {
            svg.text("by-step", x + w + 6.0, y + 13.0, "start", &label);
        } else {
            let room = ((x - LEFT - 8.0) / 6.4).max(8.0) as usize;
            svg.text("by-step", x - 6.0, y + 13.0, "end", &words::cut(&label, room));
        }
    }
    let ticks = time_ticks(axis.end);
    let step = ticks.get(1).copied().unwrap_or(1.0);
    for tick in ticks {
        let x = axis.x(tick);
        svg.line("tick", (x, height - 18.0), (x, height - 13.0));
        let anchor = if x + 20.0 > WIDTH { "end" } else { "middle" };
        svg.text("axis", x, height - 2.0, anchor, &time_label(tick, step));
    }
    svg.finish()
}

/// Samples of one stretch of time.
#[derive(Default)]
struct Bucket {
    taken: usize,
    missed: usize,
    good: Vec<f64>,
    bad: Vec<f64>,
    why: String,
}

fn buckets(samples: &[Sample], axis: Axis) -> Vec<Bucket> {
    let n = axis.buckets();
    let mut out: Vec<Bucket> = Vec::new();
    out.resize_with(n, Bucket::default);
    for sample in samples {
        let place = ((sample.due / axis.end) * n as f64).max(0.0) as usize;
        let bucket = &mut out[place.min(n - 1)];
        match &sample.outcome {
            Outcome::Good(ms) => bucket.good.push(*ms),
            Outcome::Bad(bad) => {
                bucket.bad.push(bad.ms);
                bucket.why.clone_from(&bad.why);
            }
            Outcome::Missed(why) => {
                bucket.missed += 1;
                bucket.why.clone_from(why);
            }
        }
    }
    for bucket in &mut out {
        bucket.taken = bucket.good.len() + bucket.bad.len();
        bucket.good.sort_by(f64::total_cmp);
        bucket.bad.sort_by(f64::total_cmp);
    }
    out
}

/// A logarithmic scale for latencies, in milliseconds.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for v in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(v), high.max(v));
        }
        if high == 0.0 {
            (low, high) = (1.0, 10.0);
        }
        let (mut low, mut high) = (round(low, f64::floor), round(high, f64::ceil));
        // Less than a decade would blow noise up to drama.
        while high / low < 9.5 {
            low = round(low * 0.9, f64::floor);
            if high / low < 9.5 {
                high = round(high * 1.1, f64::ceil);
            }
        }
        Self { low, high }
    }

    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        PLOT.1 - share.min(1.0) * (PLOT.1 - PLOT.0)
    }

    /// Powers of ten within.
    fn ticks(&self) -> Vec<f64> {
        let from = (self.low.log10() - 1e-9).ceil() as i32;
        let to = (self.high.log10() + 1e-9).floor() as i32;
        (from..=to).map(|p| 10f64.powi(p)).collect()
    }
}

/// The next 1, 2 or 5 times a power of ten, downwards or upwards.
fn round(value: f64, way: fn(f64) -> f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let relative = value / decade;
    let place = if way(0.5) < 0.5 {
        steps.into_iter().rev().find(|s| *s <= relative + 1e-9).unwrap_or(1.0)
    } else {
        steps.into_iter().find(|s| *s >= relative - 1e-9).unwrap_or(10.0)
    };
    place * decade
}

/// The lane of one probe.
pub fn lane(run: &Run, probe: usize) -> String {
    let axis = Axis::of(run);
    let no_samples = Vec::new();
    let samples = run.samples.get(probe).unwrap_or(&no_samples);
    let buckets = buckets(samples, axis);
    let limit = run.plan.probes.get(probe).and_then(|p| p.steady.p95).map(|l| 1e3 * l.as_secs_f64());
    let values = buckets.iter().flat_map(|b| b.good.iter().chain(&b.bad)).copied().chain(limit);
    let scale = Scale::of(values);
    let mut svg = Svg::new("lane", WIDTH, LANE, &describe(run, probe, samples));
    background(&mut svg, run, axis, &scale, limit);
    curves(&mut svg, &buckets, &scale);
    svg.finish()
}

/// What the lane shows, for those who do not see it.
fn describe(run: &Run, probe: usize, samples: &[Sample]) -> String {
    let name = run.plan.probes.get(probe).map_or("?", |p| p.name.as_str());
    let bad: Vec<f64> = samples.iter().filter(|s| s.outcome.is_bad()).map(|s| s.due).collect();
    let mut text = format!("{name} over time: {} of {} samples bad", bad.len(), samples.len());
    if let (Some(first), Some(last)) = (bad.first(), bad.last()) {
        let _ = write!(text, ", between {} and {}", words::moment(*first), words::moment(*last));
    }
    text
}

fn background(svg: &mut Svg, run: &Run, axis: Axis, scale: &Scale, limit: Option<f64>) {
    for (phase, from, to) in phases(run, axis) {
        let (x, w) = axis.span(from, to);
        svg.rect(&format!("back {}", phase.name()), (x, 0.0, w, LANE), 0.0, None);
    }
    for went in &run.steps {
        if let Some(from) = went.in_force.or(went.began) {
            let (x, w) = axis.span(from, went.ended.unwrap_or(axis.end));
            svg.rect("back in-force", (x, 0.0, w, LANE), 0.0, None);
        }
    }
    for tick in time_ticks(axis.end) {
        svg.line("grid", (axis.x(tick), PLOT.0), (axis.x(tick), PLOT.1));
    }
    for tick in scale.ticks() {
        let y = scale.y(tick);
        svg.line("grid", (LEFT, y), (WIDTH - RIGHT, y));
        svg.text("axis", LEFT - 6.0, y + 4.0, "end", &axis_ms(tick));
    }
    svg.text("axis", LEFT - 6.0, STRIP.0 + 10.0, "end", "bad");
    svg.rect("strip", (LEFT, STRIP.0, WIDTH - LEFT - RIGHT, STRIP.1), 2.0, None);
    if let Some(limit) = limit {
        let y = scale.y(limit);
        svg.line("limit", (LEFT, y), (WIDTH - RIGHT, y));
        // Above the line, unless it would lie on the strip.
        let baseline = if y - 14.0 < STRIP.0 + STRIP.1 { y + 12.0 } else { y - 4.0 };
        svg.text("limit-label", WIDTH - RIGHT - 4.0, baseline, "end", &format!("p95 ≤ {}", words::ms(limit)));
    }
}

/// `100 µs`, `1 ms`, `10 s`: without decimals, since ticks are powers of ten.
fn axis_ms(ms: f64) -> String {
    match ms {
        m if m < 0.9 => format!("{:.0} µs", m * 1e3),
        m if m < 900.0 => format!("{m:.0} ms"),
        m => format!("{:.0} s", m / 1e3),
    }
}

fn curves(svg: &mut Svg, buckets: &[Bucket], scale: &Scale) {
    let (mut range, mut middle, mut crosses) = (String::new(), String::new(), String::new());
    let mut pen_down = false;
    let middle_of = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied();
    for (i, bucket) in buckets.iter().enumerate() {
        let x = LEFT + (i as f64 + 0.5) * BUCKET;
        if let (Some(mid), Some(low), Some(high)) = (middle_of(&bucket.good), bucket.good.first(), bucket.good.last()) {
            let (top, bottom) = (scale.y(*high), scale.y(*low));
            let _ = write!(range, "M{} {}V{}", Px(x), Px(bottom + 0.5), Px(top - 0.5));
            let _ = write!(middle, "{}{} {}", if pen_down { 'L' } else { 'M' }, Px(x), Px(scale.y(mid)));
            pen_down = true;
        } else if bucket.taken + bucket.missed > 0 {
            pen_down = false;
        }
        if let Some(ms) = middle_of(&bucket.bad) {
            let y = scale.y(ms);
            let _ = write!(crosses, "M{} {}l4 4m0 -4l-4 4", Px(x - 2.0), Px(y - 2.0));
        }
    }
    svg.path("range", &range);
    svg.path("middle", &middle);
    svg.path("cross", &crosses);
    // Even one bad sample of many must be seen.
    let bad = |b: &Bucket| if b.bad.is_empty() { 0.0 } else { (b.bad.len() as f64 / b.taken as f64).max(0.3) };
    let missed = |b: &Bucket| if b.missed > 0 { 1.0 } else { 0.0 };
    bars(svg, "bad", buckets, bad);
    bars(svg, "missed", buckets, missed);
    // Last, so that nothing lies above what is hovered over.
    for (i, bucket) in buckets.iter().enumerate().filter(|(_, b)| b.taken + b.missed > 0) {
        svg.rect("hover", (LEFT + i as f64 * BUCKET, 0.0, BUCKET, LANE), 0.0, Some(&hover(bucket)));
    }
}

/// Bars in the strip, as high as `share` says; neighbours of one height are one bar.
fn bars(svg: &mut Svg, class: &str, buckets: &[Bucket], share: impl Fn(&Bucket) -> f64) {
    let heights: Vec<f64> = buckets.iter().map(|b| (STRIP.1 * share(b)).round()).collect();
    let mut x = LEFT;
    for same in heights.chunk_by(|a, b| a == b) {
        let w = same.len() as f64 * BUCKET;
        if same[0] > 0.0 {
            svg.rect(class, (x, STRIP.0 + STRIP.1 - same[0], w, same[0]), 0.0, None);
        }
        x += w;
    }
}

fn hover(bucket: &Bucket) -> String {
    let mut text = format!("{} bad of {}", bucket.bad.len(), bucket.taken);
    if bucket.missed > 0 {
        let _ = write!(text, ", {} not taken", bucket.missed);
    }
    if !bucket.why.is_empty() {
        let _ = write!(text, ": {}", bucket.why);
    }
    if let (Some(low), Some(high)) = (bucket.good.first(), bucket.good.last()) {
        let _ = write!(text, "; good {} to {}", words::ms(*low), words::ms(*high));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn every_bad_sample_is_in_the_picture() {
        let run = sample::shared_store();
        for probe in 0..run.plan.probes.len() {
            let shown: usize = buckets(&run.samples[probe], Axis::of(&run)).iter().map(|b| b.bad.len()).sum();
            assert_eq!(shown, run.samples[probe].iter().filter(|s| s.outcome.is_bad()).count());
            let picture = lane(&run, probe);
            assert_eq!(picture.contains(r#"class="bad""#), shown > 0);
        }
    }

    #[test]
    fn a_run_without_samples_or_phases_is_drawn_all_the_same() {
        let mut run = sample::lost_web();
        run.samples.iter_mut().for_each(Vec::clear);
        run.phases.clear();
        run.last_event = 0.0;
        assert!(head(&run).ends_with("</svg>"));
        assert!(!lane(&run, 0).contains("NaN"));
    }

    #[test]
    fn a_scale_covers_its_values_with_round_ends() {
        for values in [vec![0.0], vec![3.0, 3.1], vec![0.02, 1000.0], vec![999.0]] {
            let scale = Scale::of(values.iter().copied());
            assert!(scale.high / scale.low >= 9.5, "{values:?}");
            for v in values.into_iter().filter(|v| *v > 0.0) {
                assert!(scale.low <= v && v <= scale.high, "{v}");
            }
            assert!(!scale.ticks().is_empty());
        }
    }
}
