//! The command line: what it takes. One variant a verb; each verb's work is in `verb/`.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::demo;
use crate::verb::inject::InjectArgs;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Green.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// Fire drills for Linux hosts: faults that end, effects that are proven, verdicts that are honest.
#[derive(Debug, Parser)]
#[command(name = "firedrill", version, styles = STYLES, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
    /// This host's configuration: caps, and what else is protected [default: /etc/firedrill/config.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "FIREDRILL_CONFIG", global = true, hide_env_values = true)]
    pub config: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  firedrill demo             see it work: a small shop, seven drills, two minutes
  firedrill plan shop.yaml   what a run would do, exactly; touches nothing
  firedrill run shop.yaml    run the drill, watch it, get a verdict and a report
  firedrill inject latency --unit nginx.service --delay 100ms --for 30s \\
                             --watch http://127.0.0.1/
  firedrill report           read the last run again

Configuration, in TOML; every key may be left out:
  [caps]     targets = 64         at most so many targets on this host under faults at once
             replicas = \"100%\"   at most this share of a component's replicas at once; one always may
             duration = \"4h\"     at most so long for one fault
  [protect]  processes = [], units = [], ports = []     what is protected besides the usual

Exit codes:
  0  expectations held              3  inconclusive, unproven or invalid
  1  degraded, broken or leaked     4  aborted
  2  bad usage or invalid file      5  the host could not be fully restored
";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run experiments, and judge them
    #[command(after_help = "\
Examples:
  firedrill run shop.yaml
  firedrill run system.yaml lose-one-web.yaml --seed 7
  firedrill run drills/ --experiment lose-one-web --json")]
    Run(RunArgs),
    /// Show what a run would do, exactly; touches nothing
    #[command(after_help = "Example:\n  firedrill plan shop.yaml")]
    Plan(PlanArgs),
    /// Check files, without looking at the host
    #[command(after_help = "Example:\n  firedrill check drills/")]
    Check(CheckArgs),
    /// Print the JSON Schema of a kind of document, or of a fault
    #[command(after_help = "Examples:\n  firedrill schema Experiment\n  firedrill schema latency")]
    Schema(SchemaArgs),
    /// Inject one fault, now, for a while
    #[command(after_help = "\
Examples:
  firedrill inject latency --unit nginx.service --delay 100ms --for 30s --watch http://127.0.0.1/
  firedrill inject loss --netns blue --percent 30% --for 60s
  firedrill inject partition --cgroup shop/web-1 --peers 10.0.0.0/8 --for 20s
  firedrill inject kill --exe redis-server --keep --for 10s

`firedrill inject FAULT --help` shows a fault's own options.")]
    Inject(Box<InjectArgs>),
    /// Tell what this host can do, what is missing, and how to get it; or what has changed on it
    #[command(after_help = "\
Examples:
  firedrill doctor
  firedrill doctor --snapshot before.json     what this host looks like now
  firedrill doctor --diff before.json         what is different since; exit code 5 when anything is")]
    Doctor(DoctorArgs),
    /// Make a report of a run, from its log
    #[command(after_help = "\
Examples:
  firedrill report                         the last run, on the terminal
  firedrill report --format html -o report.html
  firedrill report 20261123-101500-lose-one-web-1a2b --format junit")]
    Report(ReportArgs),
    /// List runs
    Runs(RunsArgs),
    /// Show who owns this host now, what is in force, and whether anything is left of an earlier run
    #[command(after_help = "\
Of each fault: how long it has been in force, when it ends, and its receipt as of the last second.
Exit code 5 when a run was killed together with its guardian and has left something; `firedrill recover` undoes it.")]
    Status(JsonArg),
    /// End everything on this host now, even if the run is wedged, and let nothing new begin
    #[command(after_help = "\
Examples:
  firedrill halt
  firedrill halt --reason \"incident 4711\"
  firedrill halt --clear                      faults may begin again

The owner is told to end, and reverts; if it has not ended after 5 s it is killed, and its guardian
reverts. Exit code 5 when something could not be undone.")]
    Halt(HaltArgs),
    /// Undo what a run left that was killed together with its guardian
    #[command(after_help = "\
Harmless at any time, and twice: it never touches what a living run has in force, and says so. The next run does
the same before it begins. Exit code 5 when something could not be undone; it stays recorded, to be tried again.")]
    Recover(JsonArg),
    /// See it work: a small shop of real processes, seven drills, two minutes
    Demo(DemoArgs),
    /// Print shell completions
    #[command(after_help = "Example:\n  firedrill completions bash > /etc/bash_completion.d/firedrill")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    Man {
        /// The folder; made when it is not there
        #[arg(default_value = "man")]
        folder: PathBuf,
    },
    /// The demo's own services
    #[command(hide = true)]
    Shop(demo::shop::Args),
    /// The process that undoes faults when the agent dies
    #[command(hide = true)]
    Guardian {
        /// Directory of lock and journal
        run: PathBuf,
        /// Directory of what outlives a reboot
        state: PathBuf,
    },
}

/// Where everything is kept.
#[derive(Clone, Debug, Args)]
pub struct Places {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub folder: RunsFolder,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub host: HostPlaces,
}

/// Where runs are kept.
#[derive(Clone, Debug, Args)]
pub struct RunsFolder {
    /// Folder in which runs are kept
    #[arg(long, value_name = "FOLDER", env = "FIREDRILL_RUNS", default_value = "runs")]
    pub runs: PathBuf,
}

/// Where the agent keeps what makes faults end. Hidden, as nobody but a test should have two of them on one host.
#[derive(Clone, Debug, Args)]
pub struct HostPlaces {
    /// Folder of the owner lock and the journal
    #[arg(long, value_name = "FOLDER", env = "FIREDRILL_RUN_DIR", default_value = "/run/firedrill", hide = true)]
    pub run_dir: PathBuf,
    /// Folder of what must outlive a reboot
    #[arg(long, value_name = "FOLDER", env = "FIREDRILL_STATE_DIR", default_value = "/var/lib/firedrill", hide = true)]
    pub state_dir: PathBuf,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// YAML files, or folders of them; names resolve across all of them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only this experiment; may be given several times
    #[arg(long, value_name = "NAME")]
    pub experiment: Vec<String>,
    /// Seed of random choices, instead of the file's
    #[arg(long)]
    pub seed: Option<u64>,
    /// Answer yes to everything that a game day asks
    #[arg(long, short)]
    pub yes: bool,
    /// Print the result as JSON: an object, or an array when several experiments are run
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: Places,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// YAML files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only this experiment; may be given several times
    #[arg(long, value_name = "NAME")]
    pub experiment: Vec<String>,
    /// Seed of random choices, instead of the file's
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print the plan as JSON: an object, or an array when there are several experiments
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// YAML files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// System, Experiment, GameDay, or the name of a fault; all kinds when left out
    pub kind: Option<String>,
}

/// Whether to print JSON.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: HostPlaces,
}

/// Arguments of `halt`.
#[derive(Debug, Args)]
pub struct HaltArgs {
    /// Let faults begin again
    #[arg(long, conflicts_with = "reason")]
    pub clear: bool,
    /// Shown to whoever wants to begin one
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: JsonArg,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Write down what this host looks like: all that a fault could change
    #[arg(long, value_name = "FILE", conflicts_with = "diff")]
    pub snapshot: Option<PathBuf>,
    /// Compare with a snapshot, and print each difference
    #[arg(long, value_name = "FILE")]
    pub diff: Option<PathBuf>,
    /// Look into this named network namespace, too; may be given several times; all of them when left out
    #[arg(long, value_name = "NAME", requires = "snapshot")]
    pub netns: Vec<String>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: HostPlaces,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Id or folder of a run; the last one when left out
    pub run: Option<String>,
    /// What to make
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// File to write; standard output when left out
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: RunsFolder,
}

/// Formats of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For the terminal
    Text,
    /// One self-contained page
    Html,
    /// For CI's test view
    Junit,
    /// For job summaries and tickets
    Markdown,
    /// For scripts
    Json,
}

/// Arguments of `runs`.
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: RunsFolder,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: Places,
}
