//! The blast radius as a picture: components and what they need, declared against observed.

use std::collections::BTreeMap;

use firedrill_model::log::Run;
use firedrill_model::run::ComponentPlan;
use firedrill_model::verdict::Verdict;

use super::svg::{Px, Svg};
use super::words;

const BOX: (f64, f64) = (176.0, 62.0);
const GAP: (f64, f64) = (56.0, 16.0);
const MARGIN: f64 = 6.0;

/// What is known of a component after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Expected to be hit, and hit.
    Hit,
    /// Expected to be hit, not hit.
    Unmoved,
    /// Hit, and not expected to be.
    Escaped,
    /// Moved for no longer than permitted.
    Permitted,
    /// Shown to have held.
    Held,
    /// Neither shown to hold nor shown not to.
    NotShown,
    /// Has no probe.
    Unprobed,
    /// Expected to be hit, and has no probe.
    DeclaredUnprobed,
}

impl State {
    /// In words; the picture does not rest on colour.
    pub fn words(self) -> &'static str {
        match self {
            Self::Hit => "hit, as declared",
            Self::Unmoved => "declared, not moved",
            Self::Escaped => "HIT, NOT DECLARED",
            Self::Permitted => "out for the permitted time",
            Self::Held => "held",
            Self::NotShown => "not shown either way",
            Self::Unprobed => "no probe: unknown",
            Self::DeclaredUnprobed => "declared, no probe",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Unmoved => "unmoved",
            Self::Escaped => "escaped",
            Self::Permitted => "permitted",
            Self::Held => "held",
            Self::NotShown => "not-shown",
            Self::Unprobed => "unprobed",
            Self::DeclaredUnprobed => "unprobed declared",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Hit => "▲",
            Self::Unmoved => "△",
            Self::Escaped => "✗",
            Self::Permitted | Self::Held => "✓",
            Self::NotShown | Self::Unprobed | Self::DeclaredUnprobed => "?",
        }
    }
}

/// What is known of a component.
pub fn state(run: &Run, component: &ComponentPlan) -> State {
    let Some(judgement) = &run.judgement else { return State::NotShown };
    let radius = &judgement.radius;
    let has = |list: &[String]| list.contains(&component.name);
    let verdicts = || judgement.probes.iter().filter(|p| component.probes.contains(&p.probe));
    if has(&radius.escapes) {
        State::Escaped
    } else if has(&radius.unprobed) || component.probes.is_empty() {
        if has(&radius.declared) { State::DeclaredUnprobed } else { State::Unprobed }
    } else if has(&radius.observed) && has(&radius.declared) {
        State::Hit
    } else if has(&radius.over_predicted) {
        State::Unmoved
    } else if has(&radius.observed) {
        // Outside, moved, and yet no escape: an ad-hoc fault declares nothing, an experiment permits an outage.
        if run.plan.judged { State::Permitted } else { State::Hit }
    } else if verdicts().next().is_some() && verdicts().all(|p| p.verdict == Verdict::Held) {
        State::Held
    } else {
        State::NotShown
    }
}

/// The picture; `None` when there is nothing to relate.
pub fn picture(run: &Run) -> Option<String> {
    let components = &run.plan.components;
    if components.len() < 2 {
        return None;
    }
    let columns = columns(components);
    let wide = columns.iter().max().map_or(1, |c| c + 1);
    let mut rows = vec![0usize; wide];
    let place: Vec<(f64, f64)> = columns
        .iter()
        .map(|c| {
            let row = rows[*c];
            rows[*c] += 1;
            (MARGIN + *c as f64 * (BOX.0 + GAP.0), row as f64)
        })
        .collect();
    let tall = rows.iter().copied().max().unwrap_or(1);
    let height = 2.0 * MARGIN + tall as f64 * (BOX.1 + GAP.1) - GAP.1;
    let width = 2.0 * MARGIN + wide as f64 * (BOX.0 + GAP.0) - GAP.0;
    // Columns with fewer boxes stand in the middle.
    let y = |i: usize| {
        let free = (tall - rows[columns[i]]) as f64 * (BOX.1 + GAP.1) / 2.0;
        MARGIN + free + place[i].1 * (BOX.1 + GAP.1)
    };
    let said: Vec<String> = components.iter().map(|c| format!("{}: {}", c.name, state(run, c).words())).collect();
    let mut svg = Svg::new("graph", width, height, &format!("Components. {}", said.join("; ")));
    let index: BTreeMap<&str, usize> = components.iter().enumerate().map(|(i, c)| (c.name.as_str(), i)).collect();
    for (i, component) in components.iter().enumerate() {
        for needed in component.depends_on.iter().filter_map(|n| index.get(n.as_str()).copied()) {
            let from = (place[i].0 + BOX.0, y(i) + BOX.1 / 2.0);
            let to = (place[needed].0, y(needed) + BOX.1 / 2.0);
            edge(&mut svg, from, to);
        }
    }
    for (i, component) in components.iter().enumerate() {
        draw(&mut svg, run, component, (place[i].0, y(i)));
    }
    Some(svg.finish())
}

fn edge(svg: &mut Svg, from: (f64, f64), to: (f64, f64)) {
    let bend = ((to.0 - from.0) / 2.0).abs().max(24.0);
    let tip = to.0 - 6.0;
    let d = format!(
        "M{} {}C{} {} {} {} {} {}",
        Px(from.0),
        Px(from.1),
        Px(from.0 + bend),
        Px(from.1),
        Px(tip - bend),
        Px(to.1),
        Px(tip),
        Px(to.1)
    );
    svg.path("edge", &d);
    svg.path("arrow", &format!("M{} {}l-6 -4v8z", Px(to.0), Px(to.1)));
}

fn draw(svg: &mut Svg, run: &Run, component: &ComponentPlan, at: (f64, f64)) {
    let state = state(run, component);
    let targeted =
        run.plan.steps.iter().flat_map(|s| &s.targets).any(|t| t.component.as_deref() == Some(&component.name));
    let title = format!("{}: {}", component.name, state.words());
    svg.rect(&format!("box {}", state.class()), (at.0, at.1, BOX.0, BOX.1), 8.0, Some(&title));
    svg.text("name", at.0 + 12.0, at.1 + 21.0, "start", &words::cut(&component.name, 20));
    let line = format!("{} {}", state.sign(), state.words());
    svg.text("state", at.0 + 12.0, at.1 + 38.0, "start", &line);
    let mut tags = Vec::new();
    if targeted {
        tags.push("◎ fault here");
    }
    if component.user_facing {
        tags.push("users");
    }
    svg.text("tags", at.0 + 12.0, at.1 + 53.0, "start", &tags.join(" · "));
}

/// Column of each component: users' side first, each to the left of what it needs.
fn columns(components: &[ComponentPlan]) -> Vec<usize> {
    let index: BTreeMap<&str, usize> = components.iter().enumerate().map(|(i, c)| (c.name.as_str(), i)).collect();
    let mut column = vec![0usize; components.len()];
    // Longest path; bounded, so that a cycle ends too.
    for _ in 0..components.len() {
        let mut moved = false;
        for (i, component) in components.iter().enumerate() {
            for needed in component.depends_on.iter().filter_map(|n| index.get(n.as_str()).copied()) {
                if needed != i && column[needed] <= column[i] && column[i] + 1 < components.len() {
                    column[needed] = column[i] + 1;
                    moved = true;
                }
            }
        }
        if !moved {
            break;
        }
    }
    // A cycle may have left empty columns.
    let mut used: Vec<usize> = column.clone();
    used.sort_unstable();
    used.dedup();
    column.iter().map(|c| used.binary_search(c).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn an_escape_is_never_shown_as_anything_else() {
        let run = sample::shared_store();
        let states: BTreeMap<&str, State> =
            run.plan.components.iter().map(|c| (c.name.as_str(), state(&run, c))).collect();
        assert_eq!(states["front"], State::Escaped);
        assert_eq!(states["login"], State::Escaped);
        assert_eq!(states["datastore"], State::Hit);
        assert_eq!(states["session"], State::DeclaredUnprobed);
        assert_eq!(states["web"], State::Unprobed);
        assert_eq!(states["catalog"], State::NotShown);
    }

    #[test]
    fn what_has_no_probe_is_not_said_to_hold() {
        let run = sample::lost_web();
        let web = run.plan.components.iter().find(|c| c.name == "web").expect("there");
        assert_eq!(state(&run, web), State::DeclaredUnprobed);
    }

    #[test]
    fn users_stand_left_of_what_they_need_and_a_cycle_ends() {
        let mut run = sample::lost_web();
        let column = columns(&run.plan.components);
        for (i, c) in run.plan.components.iter().enumerate() {
            for (j, needed) in run.plan.components.iter().enumerate() {
                assert!(!c.depends_on.contains(&needed.name) || column[i] < column[j], "{} {}", c.name, needed.name);
            }
        }
        run.plan.components[5].depends_on.push("front".into());
        assert_eq!(columns(&run.plan.components).len(), 6);
        assert!(picture(&run).is_some());
    }
}
