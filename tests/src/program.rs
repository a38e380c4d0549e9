//! The real `firedrill` binary, run as a user would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::stage::SHIPPED_PREFIX;

/// The program: `$FIREDRILL_BIN`, or the one that was built beside this one.
pub fn binary() -> Option<PathBuf> {
    let beside = || {
        let here = std::env::current_exe().ok()?;
        // A test binary lies in `deps/`.
        here.ancestors().skip(1).take(2).map(|folder| folder.join("firedrill")).find(|path| path.is_file())
    };
    std::env::var_os("FIREDRILL_BIN").map(PathBuf::from).or_else(beside)
}

/// The repository.
pub fn root() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default();
    std::env::var_os("FIREDRILL_ROOT").map_or_else(built, PathBuf::from)
}

/// A name that no other test has at this time, short enough for an interface.
pub fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A folder that is removed at the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(unique("firedrill-test-"));
        fs::create_dir(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it, and gives its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Kept for whoever looks into a failure.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// The program with places of its own, so that tests, and other people's drills, do not meet.
#[derive(Debug)]
pub struct Firedrill {
    binary: PathBuf,
    folder: Folder,
}

impl Firedrill {
    /// The program, with new places.
    ///
    /// # Errors
    /// It is not built, or the places cannot be made.
    pub fn new() -> Result<Self> {
        let binary = binary().context("firedrill is not built: run `cargo build` first")?;
        Ok(Self { binary, folder: Folder::new()? })
    }

    /// Its path.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A folder for this test's files.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Where it keeps its runs.
    pub fn runs(&self) -> PathBuf {
        self.folder.path().join("runs")
    }

    /// Where it keeps lock and journal.
    pub fn run_directory(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The program with arguments, in the repository's folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(root()).stdin(Stdio::null());
        command.env("FIREDRILL_RUNS", self.runs()).env("FIREDRILL_RUN_DIR", self.run_directory());
        command.env("FIREDRILL_STATE_DIR", self.folder.path().join("state"));
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, args: &[&str]) -> Result<Output> {
        self.command(args).output().with_context(|| format!("cannot start {}", self.binary.display()))
    }

    /// Runs it with `--json` to its end.
    ///
    /// # Errors
    /// It cannot be started, or its output is not one JSON document.
    pub fn json(&self, args: &[&str]) -> Result<Outcome> {
        Outcome::of(self.output(&[args, &["--json"]].concat())?)
    }

    /// Starts it, with its output in files.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, args: &[&str]) -> Result<Started> {
        let out = self.folder.path().join(unique("out"));
        let err = self.folder.path().join(unique("err"));
        let mut command = self.command(args);
        command.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        Ok(Started { child, out, err })
    }

    /// Runs a shipped experiment on a stage, whose names it is given.
    ///
    /// # Errors
    /// There is no such file, or the program cannot be started.
    pub fn drill(&self, file: &str, prefix: &str, experiment: &str) -> Result<Outcome> {
        let path = root().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(text.contains(SHIPPED_PREFIX), "{file} does not name its stage {SHIPPED_PREFIX}");
        let own = self.folder.write("experiments.yaml", &text.replace(SHIPPED_PREFIX, prefix))?;
        self.json(&["run", &own.display().to_string(), "--experiment", experiment, "--quiet"])
    }

    /// How many steps of the only run have come into force so far, by its log.
    pub fn steps_in_force(&self) -> usize {
        let log = self.only_run().and_then(|run| Ok(fs::read_to_string(run.join("events.ndjson"))?));
        log.map_or(0, |log| log.matches("\"step-in-force\"").count())
    }

    /// The only run's folder.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn only_run(&self) -> Result<PathBuf> {
        let runs = fs::read_dir(self.runs()).context("there are no runs")?;
        let found: Vec<PathBuf> = runs.flatten().map(|entry| entry.path()).collect();
        match found.as_slice() {
            [one] => Ok(one.clone()),
            several => bail!("{} runs, not one", several.len()),
        }
    }
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it printed with `--json`.
    pub json: Value,
    /// What it said beside.
    pub errors: String,
}

impl Outcome {
    fn of(output: Output) -> Result<Self> {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().with_context(|| format!("firedrill was killed: {}", output.status))?;
        let json = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("exit code {code}; not JSON: {:?}; {errors}", String::from_utf8_lossy(&output.stdout))
        })?;
        Ok(Self { code, json, errors })
    }

    /// The run's verdict.
    pub fn verdict(&self) -> &str {
        self.json["verdict"].as_str().unwrap_or_default()
    }

    /// The run's finding.
    pub fn finding(&self) -> &str {
        self.json["finding"].as_str().unwrap_or_default()
    }

    /// A probe, by `component/name`.
    ///
    /// # Panics
    /// There is none.
    pub fn probe(&self, name: &str) -> &Value {
        let all = self.json["probes"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().find(|p| p["name"] == name).unwrap_or_else(|| panic!("no probe {name} in {:#}", self.json))
    }

    /// How long a probe was out under the fault (s); 0 when nothing was bad.
    ///
    /// # Panics
    /// There is no such probe.
    pub fn outage(&self, name: &str) -> f64 {
        self.probe(name)["outage"]["lasted"].as_f64().unwrap_or(0.0)
    }

    /// Everything, for the message of a failed assertion.
    pub fn told(&self) -> String {
        format!("exit code {}: {:#}\n{}", self.code, self.json, self.errors)
    }

    /// Asserts verdict and exit code, and that everything was undone.
    ///
    /// # Panics
    /// They are others, or something is left.
    pub fn expect(&self, verdict: &str, code: i32) {
        assert_eq!((self.verdict(), self.code), (verdict, code), "{}", self.told());
        assert_eq!(self.json["left_over"], serde_json::json!([]), "{}", self.told());
        let changes = &self.json["changes"];
        let number = |key: &str| changes[key].as_u64().unwrap_or_default();
        assert_eq!(number("applied"), number("undone") + number("irreversible"), "{}", self.told());
    }
}

/// The program while it runs; killed when it is dropped.
#[derive(Debug)]
pub struct Started {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Started {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                begun.elapsed() < patience,
                "firedrill did not end within {patience:?}; it said: {}",
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it printed so far.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// What it said beside, so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
