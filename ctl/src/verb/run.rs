//! `firedrill run`: experiments and game days, one after another.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use firedrill_agent::agent::Agent;
use firedrill_agent::target::TargetError;
use firedrill_model::file::{GameDay, OnFinding};
use firedrill_model::lower::{Choices, Library};
use firedrill_model::run::RunPlan;
use firedrill_model::verdict::ExitCode;

use super::{UsageError, files, report};
use crate::cli::RunArgs;
use crate::drive::{self, Finished, Job, Signals};
use crate::render::live::Live;
use crate::render::paint::Screen;
use crate::render::say::{aside, say};
use crate::render::{json, summary};

pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let (library, _) = files::read(&args.files)?;
    let agenda = agenda(&library, args)?;
    // Everything that can be wrong with any of them is said before the first begins.
    for item in &agenda {
        super::within_caps(&lower(&library, &item.experiment, args, 0)?.plan)?;
    }
    let question = agenda.iter().find_map(|i| i.confirm.as_ref());
    if let Some(question) = question
        && !args.yes
        && !std::io::stdin().is_terminal()
    {
        return Err(UsageError(format!(
            "this day asks \"{question}\", and there is no terminal to answer on; use --yes"
        ))
        .into());
    }
    let what = agenda.iter().map(|i| i.experiment.as_str()).collect::<Vec<_>>().join(", ");
    let agent = super::start_agent(&args.places, &format!("run {what}"))?;
    super::tell_recovery(&agent);
    let mut summaries = Vec::new();
    let result = super::runtime()?.block_on(all(&library, &agenda, args, &agent, &mut summaries));
    let farewell = agent.stop();
    let print = || if args.json { print_json(&summaries, agenda.len()) } else { Ok(()) };
    let result = result.map(|exit| super::told(exit, print()));
    super::conclude(result, &farewell)
}

/// One experiment to run, and what a game day says about it.
struct Item {
    experiment: String,
    confirm: Option<String>,
    note: Option<String>,
    pause: std::time::Duration,
    stop_on_finding: bool,
}

fn agenda(library: &Library, args: &RunArgs) -> Result<Vec<Item>> {
    let days = library.game_days(None);
    if args.experiment.is_empty() && !days.is_empty() {
        let items = |day: &&GameDay| {
            let stop = day.on_finding == OnFinding::Stop;
            let item = move |s: &firedrill_model::file::GameDayStep| Item {
                experiment: s.run.value.clone(),
                confirm: s.confirm.clone(),
                note: s.note.clone(),
                pause: s.pause.0,
                stop_on_finding: stop,
            };
            day.steps.iter().map(item).collect::<Vec<_>>()
        };
        return Ok(days.iter().flat_map(items).collect());
    }
    let names = files::experiments(library, &args.experiment)?;
    Ok(names
        .into_iter()
        .map(|experiment| Item {
            experiment,
            confirm: None,
            note: None,
            pause: std::time::Duration::ZERO,
            stop_on_finding: false,
        })
        .collect())
}

fn lower(library: &Library, experiment: &str, args: &RunArgs, seed: u64) -> Result<firedrill_model::lower::Lowered> {
    let choices = Choices {
        seed: args.seed.unwrap_or(seed),
        force_seed: args.seed.is_some(),
        env: &|name| std::env::var(name).ok(),
    };
    library.lower(experiment, &choices).map_err(|found| files::refuse(&found))
}

/// One document, whatever was run: an object for one experiment, an array for several.
fn print_json(summaries: &[String], planned: usize) -> Result<()> {
    match summaries {
        [] if planned == 1 => Ok(()),
        [one] if planned == 1 => say(one.trim_end()),
        several => say(format!("[\n{}\n]", several.iter().map(|s| s.trim_end()).collect::<Vec<_>>().join(",\n"))),
    }
}

async fn all(
    library: &Library,
    agenda: &[Item],
    args: &RunArgs,
    agent: &Agent,
    summaries: &mut Vec<String>,
) -> Result<ExitCode> {
    let mut signals = Signals::take()?;
    let mut exit = ExitCode::Held;
    for item in agenda {
        if !item.pause.is_zero() {
            aside(format_args!("resting for {}", firedrill_model::units::Span(item.pause)));
            tokio::select! {
                () = tokio::time::sleep(item.pause) => {}
                _ = signals.next() => return Ok(exit.worse(ExitCode::Aborted)),
            }
        }
        if let Some(note) = &item.note {
            aside(format_args!("note: {note}"));
        }
        if let Some(question) = &item.confirm
            && !args.yes
        {
            let confirmed = tokio::select! {
                answer = confirmed(question) => answer?,
                _ = signals.next() => false,
            };
            if !confirmed {
                aside(format_args!("not confirmed: {} is not run", item.experiment));
                return Ok(exit.worse(ExitCode::Aborted));
            }
        }
        let lowered = lower(library, &item.experiment, args, rand::random())?;
        // Before anything is touched, and not when the step begins.
        tokio::task::block_in_place(|| are_peers_known(agent, &lowered.plan))?;
        let seed = lowered.plan.seed;
        let live = (!args.quiet).then(Live::stderr);
        let job = Job {
            lowered,
            agent,
            runs: &args.places.folder.runs,
            replay: replay(args, &item.experiment, seed),
            notes: item.note.iter().cloned().collect(),
            live,
            signals: &mut signals,
        };
        let finished = one(job, args).await?;
        exit = exit.worse(finished.exit);
        summaries.push(json::report(&finished.run));
        if matches!(finished.exit, ExitCode::Aborted | ExitCode::NotRestored) {
            break;
        }
        if item.stop_on_finding && finished.exit != ExitCode::Held {
            aside(format_args!("the day ends here, as its file says (`on_finding: stop`)"));
            break;
        }
    }
    Ok(exit)
}

/// Whether every name of a peer stands for something now. Targets that are not there are told when their step begins.
fn are_peers_known(agent: &Agent, plan: &RunPlan) -> Result<()> {
    for target in plan.steps.iter().flat_map(|step| &step.targets).filter(|target| !target.peers.is_empty()) {
        if let Err(error @ TargetError::Peer { .. }) = agent.resolve(target) {
            return Err(UsageError(error.to_string()).into());
        }
    }
    Ok(())
}

async fn one(job: Job<'_>, args: &RunArgs) -> Result<Finished> {
    let mut finished = drive::run(job).await?;
    // What was found is told even where its reports cannot be written.
    let page = report::write_all(&finished.run, &finished.folder);
    let place = page.as_ref().ok().map(|page| page.display().to_string());
    let text = || summary::text(&finished.run, place.as_deref(), Screen::stdout().paint());
    let said = if args.json { Ok(()) } else { say(text()) };
    finished.exit = super::told(finished.exit, said.and(page.map(drop)));
    Ok(finished)
}

fn replay(args: &RunArgs, experiment: &str, seed: u64) -> Vec<String> {
    let mut line = vec!["firedrill".to_owned(), "run".to_owned()];
    line.extend(args.files.iter().map(|f| f.display().to_string()));
    line.extend(["--experiment".into(), experiment.to_owned(), "--seed".into(), seed.to_string()]);
    line
}

/// Asks a person. The answer is read on a thread of its own, so that Ctrl-C is heard while nobody answers.
async fn confirmed(question: &str) -> Result<bool> {
    let mut err = anstream::stderr();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let (answered, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).map(|_| line);
        // Nobody listens after Ctrl-C.
        let _ = answered.send(read);
    });
    let line = answer.await??;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
