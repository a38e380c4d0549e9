//! One instance of every fault: the first one of its kind in its example.

use std::fs;
use std::path::{Path, PathBuf};

use firedrill_model::fault::{Fault, TABLE};
use firedrill_model::file::{Document, parse};

/// All faults of the table.
///
/// # Errors
/// A fault has no example, or one without it.
pub fn faults() -> Result<Vec<Fault>, String> {
    let folder = folder().ok_or("the folder experiments/faults was not found")?;
    TABLE.iter().map(|(name, _)| sample(&folder, name)).collect()
}

/// That of this repository; in a guest, of its root.
fn folder() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    [here, Path::new("/")].into_iter().map(|root| root.join("experiments/faults")).find(|folder| folder.is_dir())
}

fn sample(folder: &Path, name: &str) -> Result<Fault, String> {
    let path = folder.join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).map_err(|e| format!("`{name}` has no example, {}: {e}", path.display()))?;
    let documents = parse(&path.display().to_string(), &text).map_err(|e| e.to_string())?;
    let experiments =
        documents.into_iter().filter_map(|d| if let Document::Experiment(e) = d { Some(e) } else { None });
    let mut faults = experiments.flat_map(|e| e.steps).flat_map(|step| step.value.inject).map(|fault| fault.value);
    faults.find(|fault| fault.name() == name).ok_or_else(|| format!("{} injects no `{name}`", path.display()))
}
