//! `firedrill inject`: one fault, now. Its options are made from the fault's own parameters, so that a new fault
//! has them without a line here.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use firedrill_agent::agent::Agent;
use firedrill_agent::target::TargetError;
use firedrill_model::change::DnsAnswer;
use firedrill_model::facts::FactsSnapshot;
use firedrill_model::fault::{Fault, TABLE};
use firedrill_model::lower;
use firedrill_model::peer::Peer;
use firedrill_model::protect::Thing;
use firedrill_model::ramp::Ramped;
use firedrill_model::run::{RunPlan, TargetPlan};
use firedrill_model::target::{ProcessSelector, TargetSpec};
use firedrill_model::units::{NameGlob, Percent, Ports, Rate, Size, Span};
use firedrill_model::verdict::ExitCode;
use serde_json::{Map, Value};

use super::{UsageError, report};
use crate::cli::Places;
use crate::drive::{self, Finished, Job, Signals};
use crate::render::live::Live;
use crate::render::paint::Screen;
use crate::render::say::say;
use crate::render::{json, summary};

/// Arguments of `inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// The fault
    #[command(subcommand)]
    fault: FaultArgs,
}

/// A fault and its options.
#[derive(Debug)]
struct FaultArgs {
    fault: Fault,
    common: Common,
}

/// What every fault takes.
#[derive(Clone, Debug, Args)]
struct Common {
    /// How long
    #[arg(long = "for", value_name = "DURATION", default_value = "30s")]
    lasts: Span,
    /// Probe this URL ten times a second, and show what the fault does to it
    #[arg(long, value_name = "URL")]
    watch: Option<String>,
    /// Network namespace to watch from
    #[arg(long, value_name = "NAME", requires = "watch")]
    watch_from: Option<String>,
    /// Act on this protected thing all the same, such as "process sshd" or "port 22"; a refusal names it; repeatable
    #[arg(long, value_name = "WHAT")]
    allow_protected: Vec<Thing>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    // Before the target, whose heading would else stand above it.
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    target: Target,
}

/// The target.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Target (one of; --interface goes with --netns; process conditions add up)")]
struct Target {
    /// Systemd unit
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// Cgroup v2 path below the mount point
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Process
    #[arg(long)]
    pid: Option<i32>,
    /// Processes by executable, path or file name
    #[arg(long, value_name = "NAME")]
    exe: Option<String>,
    /// Processes by part of their command line
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Processes by user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Processes by the port that they listen on
    #[arg(long, value_name = "PORT")]
    listens_on: Option<u16>,
    /// Network namespace: all its interfaces but lo
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Network interface
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

impl Target {
    fn spec(&self) -> TargetSpec {
        let process = ProcessSelector {
            exe: self.exe.clone(),
            cmdline: self.cmdline.clone(),
            user: self.user.clone(),
            listens_on: self.listens_on,
        };
        TargetSpec {
            cgroup: self.cgroup.clone(),
            unit: self.unit.clone(),
            pid: self.pid,
            process: (process != ProcessSelector::default()).then_some(process),
            netns: self.netns.clone(),
            interface: self.interface.clone(),
        }
    }
}

impl Subcommand for FaultArgs {
    fn augment_subcommands(command: Command) -> Command {
        let faults = TABLE.iter().map(|(name, summary)| {
            let fault = Command::new(*name).args(parameters(name).iter().map(Parameter::arg));
            Common::augment_args(fault).about(summary.trim()).arg_required_else_help(true)
        });
        command.subcommand_required(true).subcommands(faults)
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        TABLE.iter().any(|(known, _)| *known == name)
    }
}

impl FromArgMatches for FaultArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || clap::Error::raw(clap::error::ErrorKind::MissingSubcommand, "which fault?\n");
        let (name, matches) = matches.subcommand().ok_or_else(missing)?;
        let invalid =
            |why: String| clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{name}: {why}\n"));
        let values: Map<String, Value> =
            parameters(name).iter().filter_map(|p| Some((p.name.clone(), p.value(matches)?))).collect();
        let tagged = Map::from_iter([(name.to_owned(), Value::Object(values))]);
        let fault: Fault = serde_json::from_value(Value::Object(tagged)).map_err(|e| invalid(e.to_string()))?;
        fault.check().map_err(invalid)?;
        let common = Common::from_arg_matches(matches)?;
        let spec = common.target.spec();
        if spec == TargetSpec::default() {
            let all = "--unit, --cgroup, --pid, --exe, --cmdline, --user, --listens-on, --netns or --interface";
            return Err(invalid(format!("on what? Name a target by {all}")));
        }
        spec.check().map_err(invalid)?;
        Ok(Self { fault, common })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// One parameter of a fault, as its schema describes it.
struct Parameter {
    name: String,
    help: String,
    required: bool,
    kind: Kind,
    /// Type name of the schema, which tells how a value is checked.
    of: String,
}

#[derive(PartialEq)]
enum Kind {
    Flag,
    One,
    Number,
    Many,
    /// Parameters of its own, written `a=1,b=2`.
    Group,
}

/// Parameters of a fault, by its JSON Schema.
fn parameters(fault: &str) -> Vec<Parameter> {
    let Some(schema) = Fault::schema(fault).map(|s| s.to_value()) else { return Vec::new() };
    let required: Vec<&str> =
        schema["required"].as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let parameter = |(name, property): (&String, &Value)| {
        let is = |kind: &str| match &property["type"] {
            Value::String(one) => one == kind,
            Value::Array(several) => several.iter().any(|k| k == kind),
            _ => false,
        };
        let of = reference(property).unwrap_or_default();
        let kind = if is("boolean") {
            Kind::Flag
        } else if is("integer") && !is("string") {
            Kind::Number
        } else if schema["$defs"][&of]["properties"].is_object() {
            Kind::Group
        } else if is("array") {
            Kind::Many
        } else {
            Kind::One
        };
        Parameter {
            name: name.clone(),
            help: property["description"].as_str().unwrap_or_default().to_owned(),
            required: required.contains(&name.as_str()),
            kind,
            of,
        }
    };
    properties.iter().map(parameter).collect()
}

/// Name of the type that a property refers to, directly, as an item or as an alternative.
fn reference(property: &Value) -> Option<String> {
    if let Some(path) = property["$ref"].as_str() {
        return path.rsplit('/').next().map(str::to_owned);
    }
    let nested = property["items"].is_object().then(|| reference(&property["items"])).flatten();
    nested.or_else(|| property["anyOf"].as_array().or(property["allOf"].as_array())?.iter().find_map(reference))
}

impl Parameter {
    fn arg(&self) -> Arg {
        let long = self.name.replace('_', "-");
        let arg = Arg::new(self.name.clone()).long(long).help(self.help.clone()).required(self.required);
        let arg = match self.kind {
            Kind::Flag => return arg.action(ArgAction::SetTrue),
            Kind::One => arg,
            Kind::Number => return arg.value_name("N").value_parser(clap::value_parser!(u64)),
            Kind::Group => return arg.value_name("NAME=VALUE,..").value_parser(group),
            Kind::Many => arg.action(ArgAction::Append).value_delimiter(','),
        };
        let arg = arg.value_name(self.of.to_uppercase());
        fn checked<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<String, String> {
            text.parse::<T>().map(|_| text.to_owned()).map_err(|e| e.to_string())
        }
        match self.of.as_str() {
            "Duration" => arg.value_parser(checked::<Ramped<Span>>),
            "Percent" => arg.value_parser(checked::<Ramped<Percent>>),
            "Ports" => arg.value_parser(checked::<Ports>),
            "Peer" => arg.value_parser(checked::<Peer>),
            "Answer" => arg.value_parser(checked::<DnsAnswer>),
            "Name" => arg.value_parser(checked::<NameGlob>),
            "Rate" => arg.value_parser(checked::<Ramped<Rate>>),
            "Size" => arg.value_parser(checked::<Size>),
            _ => arg,
        }
    }

    fn value(&self, matches: &ArgMatches) -> Option<Value> {
        match self.kind {
            Kind::Flag => matches.get_flag(&self.name).then_some(Value::Bool(true)),
            Kind::One => matches.get_one::<String>(&self.name).cloned().map(Value::String),
            Kind::Number => matches.get_one::<u64>(&self.name).copied().map(Value::from),
            Kind::Group => matches.get_one::<Value>(&self.name).cloned(),
            Kind::Many => {
                let values = matches.get_many::<String>(&self.name)?;
                Some(Value::Array(values.cloned().map(Value::String).collect()))
            }
        }
    }
}

/// Reads `a=1,b=2`.
fn group(text: &str) -> Result<Value, String> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=VALUE"))?;
        Ok((name.trim().to_owned(), Value::String(value.trim().to_owned())))
    };
    text.split(',').map(pair).collect::<Result<Map<_, _>, String>>().map(Value::Object)
}

/// The command line that repeats it, which every report shows: so without the secrets of the URL to be watched.
fn replay(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let shown = arguments.map(|a| if a.contains("://") { lower::mask_url(&a) } else { a });
    std::iter::once("firedrill".to_owned()).chain(shown).collect()
}

fn tell(common: &Common, finished: &Finished) -> ExitCode {
    // What was found is told even where its reports cannot be written.
    let page = report::write_all(&finished.run, &finished.folder);
    let place = page.as_ref().ok().map(|page| page.display().to_string());
    let said = if common.json {
        say(json::report(&finished.run).trim_end())
    } else {
        say(summary::text(&finished.run, place.as_deref(), Screen::stdout().paint()))
    };
    super::told(finished.exit, said.and(page.map(drop)))
}

/// Before there is a run: a target that is not there, or on which the fault cannot act, is a mistake on the command line.
fn is_possible(agent: &Agent, plan: &RunPlan) -> Result<()> {
    for step in &plan.steps {
        for target in &step.targets {
            let found = agent.resolve(target).map_err(|error| match error {
                TargetError::Io { .. } => anyhow::Error::from(error),
                _ => UsageError(error.to_string()).into(),
            })?;
            let facts = FactsSnapshot { host: agent.host().clone(), target: found };
            for fault in &step.faults {
                fault.plan(&facts).map_err(|error| UsageError(error.to_string()))?;
            }
        }
    }
    Ok(())
}

pub fn run(args: &InjectArgs) -> Result<ExitCode> {
    let FaultArgs { fault, common } = &args.fault;
    let watched = match &common.watch {
        Some(url) => Some(lower::watch(url, common.watch_from.clone()).map_err(UsageError)?),
        None => None,
    };
    let target = TargetPlan { allow_protected: common.allow_protected.clone(), ..TargetPlan::of(common.target.spec()) };
    let lowered = lower::ad_hoc(target, fault.clone(), common.lasts, watched, rand::random());
    super::within_caps(&lowered.plan)?;
    let agent = super::start_agent(&common.places, &format!("inject {}", fault.name()))?;
    super::tell_recovery(&agent);
    if let Err(error) = is_possible(&agent, &lowered.plan) {
        return super::conclude(Err(error), &agent.stop());
    }
    let result = super::runtime()?.block_on(async {
        let mut signals = Signals::take()?;
        let live = Some(Live::stderr());
        let replay = replay(std::env::args().skip(1));
        let runs: &PathBuf = &common.places.folder.runs;
        let notes = Vec::new();
        drive::run(Job { lowered, agent: &agent, runs, replay, notes, live, signals: &mut signals }).await
    });
    let farewell = agent.stop();
    super::conclude(result.map(|finished| tell(common, &finished)), &farewell)
}
