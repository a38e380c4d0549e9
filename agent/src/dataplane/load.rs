//! Loading the programs and finding out what the kernel can do.

use std::{
    io::{self, Read as _},
    os::fd::AsFd,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues},
    programs::{CgroupSock, ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported},
    util::nr_cpus,
};
use firedrill_abi::{Counters, Interface, MODEL_INDEPENDENT, Rule, Scope};

use super::{chain, error::DataPlaneError, map_error, tags::Tags};
use crate::{
    crash_point, pulse,
    sys::{bpf::Shared, memory, mmap::LineTable},
};

/// The compiled programs; `cargo xtask build-ebpf` makes them from `ebpf/`.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/dataplane/firedrill.bpf.o"));

pub(super) const EGRESS: &str = "fdrill_egress";
pub(super) const INGRESS: &str = "fdrill_ingress";
pub(super) const REINJECT: &str = "fdrill_reinject";
const TAG_NEW: &str = "fdrill_tag_new";
const TAG_CGROUP: &str = "fdrill_tag_cg";

/// What the kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// `bpf_loop` (kernels from 5.17), without which the programs do not load.
    pub bpf_loop: bool,
    /// tcx links, which end with the process (kernels from 6.6). Else `clsact` filters are used.
    pub tcx: bool,
    /// A TUN/TAP driver, without which nothing can be delayed.
    pub tap: bool,
    /// PREEMPT_RT, on which the programs are not loaded.
    pub real_time: bool,
}

/// Asks the kernel.
pub fn kernel_support() -> Support {
    Support {
        bpf_loop: is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop).unwrap_or(false),
        // Every namespace has a loopback interface; a kernel without tcx does not know the question.
        tcx: SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok(),
        tap: std::path::Path::new("/dev/net/tun").exists(),
        real_time: is_real_time(),
    }
}

/// On a PREEMPT_RT kernel programs of one CPU can interrupt each other, and ours share memory by CPU.
fn is_real_time() -> bool {
    std::fs::read("/sys/kernel/realtime").is_ok_and(|text| text.starts_with(b"1"))
}

/// The maps that the agent writes, and the counters.
pub(super) struct Maps {
    rules: HashMap<MapData, u32, Shared<Rule>>,
    pub scopes: HashMap<MapData, u32, Shared<Scope>>,
    pub interfaces: HashMap<MapData, u32, Shared<Interface>>,
    pub taps: HashMap<MapData, u32, u32>,
    states: HashMap<MapData, u32, u32>,
    counters: PerCpuHashMap<MapData, u32, Shared<Counters>>,
    pub spared: HashMap<MapData, u32, u64>,
    refused: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// The counters of a rule, over all CPUs.
    pub(super) fn counters(&self, rule: u32) -> Result<Counters, DataPlaneError> {
        let per_cpu = self.counters.get(&rule, 0).map_err(map_error("COUNTERS"))?;
        Ok(per_cpu.iter().fold(Counters::default(), |sum, Shared(cpu)| Counters {
            matched: sum.matched + cpu.matched,
            bytes: sum.bytes + cpu.bytes,
            dropped: sum.dropped + cpu.dropped,
            diverted: sum.diverted + cpu.diverted,
            passed: sum.passed + cpu.passed,
        }))
    }

    /// Makes a rule, with counters at 0. Nothing asks it before its scope lists it.
    pub(super) fn begin_rule(&mut self, number: u32, rule: Rule) -> Result<(), DataPlaneError> {
        let zeros = zeros(Shared(Counters::default()))?;
        crash_point::around("counters.make", || self.counters.insert(number, zeros, 0))
            .map_err(map_error("COUNTERS"))?;
        if rule.model != MODEL_INDEPENDENT {
            crash_point::around("state.make", || self.states.insert(number, 0, 0)).map_err(map_error("STATES"))?;
        }
        self.write_rule(number, rule)
    }

    /// Replaces a rule as a whole.
    pub(super) fn write_rule(&mut self, number: u32, rule: Rule) -> Result<(), DataPlaneError> {
        crash_point::around("rule.write", || self.rules.insert(number, Shared(rule), 0)).map_err(map_error("RULES"))
    }

    /// Removes a rule that no scope lists. One that is not there is no error.
    pub(super) fn end_rule(&mut self, number: u32) -> Result<(), DataPlaneError> {
        let rule = crash_point::around("rule.remove", || self.rules.remove(&number));
        let state = crash_point::around("state.remove", || self.states.remove(&number));
        let counters = crash_point::around("counters.remove", || self.counters.remove(&number));
        let rule = absent_is_fine(rule).map_err(map_error("RULES"));
        let state = absent_is_fine(state).map_err(map_error("STATES"));
        rule.and(state).and(absent_is_fine(counters).map_err(map_error("COUNTERS")))
    }

    /// Packets that a line could not take.
    pub(super) fn refused(&self, slot: u32) -> Result<u64, DataPlaneError> {
        Ok(self.refused.get(&slot, 0).map_err(map_error("REFUSED"))?.iter().sum())
    }

    pub(super) fn reset_refused(&mut self, slot: u32) -> Result<(), DataPlaneError> {
        let zeros = zeros(0)?;
        crash_point::around("refused.reset", || self.refused.set(slot, zeros, 0)).map_err(map_error("REFUSED"))
    }
}

/// Removing what is not there is no error.
pub fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

pub fn zeros<T: aya::Pod>(zero: T) -> Result<PerCpuValues<T>, DataPlaneError> {
    let cpus = nr_cpus().map_err(|(what, error)| DataPlaneError::Load(format!("{what}: {error}")))?;
    PerCpuValues::try_from(vec![zero; cpus]).map_err(|error| DataPlaneError::Load(error.to_string()))
}

/// Programs in the kernel, not attached, and their maps.
pub(super) struct Loaded {
    pub bpf: Ebpf,
    pub maps: Maps,
    pub tags: Tags,
    pub table: LineTable,
    pub nonce: u64,
}

/// All programs, of which none is in the kernel yet, and their maps, which are.
///
/// # Errors
/// The kernel refuses the maps.
pub fn object() -> Result<Ebpf, DataPlaneError> {
    // The loader reads all types of the kernel, some 8 MB at a time, whenever programs are loaded.
    memory::give_back_large_blocks();
    EbpfLoader::new().load(OBJECT).map_err(|error| DataPlaneError::Load(chain(&error)))
}

pub(super) fn load() -> Result<Loaded, DataPlaneError> {
    if is_real_time() {
        return Err(DataPlaneError::RealTime);
    }
    let [nonce, nonce_1] = random_words().map_err(|error| DataPlaneError::Load(format!("/dev/urandom: {error}")))?;
    // The loader reads all types of the kernel, some 8 MB at a time, whenever programs are loaded.
    memory::give_back_large_blocks();
    let mut bpf = EbpfLoader::new()
        .override_global("NONCE_0", &nonce, true)
        .override_global("NONCE_1", &nonce_1, true)
        .load(OBJECT)
        .map_err(|error| DataPlaneError::Load(chain(&error)))?;
    for name in [EGRESS, INGRESS, REINJECT] {
        // The kernel verifies each in one call, which a busy machine may take seconds for: slow is not hung.
        pulse::beat();
        let program: &mut SchedClassifier = program(&mut bpf, name)?;
        program.load().map_err(|error| refused(name, &error))?;
    }
    pulse::beat();
    let with_process = load_tagger(&mut bpf)?;
    let table = match bpf.take_map("LINES") {
        // The mapping keeps the map alive.
        Some(Map::Array(lines)) => LineTable::map(lines.fd().as_fd()).map_err(|error| error.to_string()),
        _ => Err("the object does not have it as an array: rebuild it".into()),
    }
    .map_err(|reason| DataPlaneError::Map { map: "LINES", reason })?;
    let maps = Maps {
        rules: take(&mut bpf, "RULES")?,
        scopes: take(&mut bpf, "SCOPES")?,
        states: take(&mut bpf, "STATES")?,
        interfaces: take(&mut bpf, "INTERFACES")?,
        taps: take(&mut bpf, "TAPS")?,
        spared: take(&mut bpf, "SPARED")?,
        counters: take(&mut bpf, "COUNTERS")?,
        refused: take(&mut bpf, "REFUSED")?,
    };
    let tags = Tags::new(
        take(&mut bpf, "CGROUP_TAGS")?,
        take(&mut bpf, "PROCESS_TAGS")?,
        take(&mut bpf, "SOCKET_TAGS")?,
        if with_process { TAG_NEW } else { TAG_CGROUP },
        with_process,
    );
    Ok(Loaded { bpf, maps, tags, table, nonce })
}

/// Loads the program that tags new sockets; gives whether it is the one that knows processes, which older kernels
/// refuse.
fn load_tagger(bpf: &mut Ebpf) -> Result<bool, DataPlaneError> {
    let tagger: &mut CgroupSock = program(bpf, TAG_NEW)?;
    let Err(first) = tagger.load() else {
        return Ok(true);
    };
    let tagger: &mut CgroupSock = program(bpf, TAG_CGROUP)?;
    tagger.load().map_err(|error| refused(TAG_CGROUP, &error))?;
    tracing::info!(error = %refused(TAG_NEW, &first), "sockets of processes are only tagged by scans");
    Ok(false)
}

/// The end of what the verifier says holds the reason; all of it is too long to read.
pub fn refused(name: &str, error: &ProgramError) -> DataPlaneError {
    const KEPT: usize = 600;
    let text = chain(error);
    let cut = text.len().saturating_sub(KEPT);
    let tail = text.char_indices().find(|(at, _)| *at >= cut).map_or("", |(at, _)| &text[at..]);
    DataPlaneError::Load(format!("{name}: {}{tail}", if cut > 0 { "... " } else { "" }))
}

pub fn program<'a, P>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, DataPlaneError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    bpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| DataPlaneError::Load(format!("the object has no program {name}: rebuild it")))
}

pub fn take<M>(bpf: &mut Ebpf, name: &'static str) -> Result<M, DataPlaneError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = bpf
        .take_map(name)
        .ok_or_else(|| DataPlaneError::Map { map: name, reason: "the object does not have it: rebuild it".into() })?;
    M::try_from(map).map_err(map_error(name))
}

fn random_words() -> io::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let (low, high) = bytes.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Ok([word(low), word(high)])
}
