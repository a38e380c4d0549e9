//! Instances of every fault: those of its example.

use std::fs;
use std::path::{Path, PathBuf};

use firedrill_model::fault::{Fault, TABLE};
use firedrill_model::file::{Document, parse};
use serde_json::Value;

/// All faults of the table, with each set of parameters that its example has.
///
/// # Errors
/// A fault has no example, or one without it.
pub fn faults() -> Result<Vec<Fault>, String> {
    let folder = folder().ok_or("the folder experiments/faults was not found")?;
    let mut all = Vec::new();
    for (name, _) in TABLE {
        all.extend(samples(&folder, name)?);
    }
    Ok(all)
}

/// A fault's name; with what is different in it when another one has that name before it.
pub fn label(fault: &Fault, all: &[Fault]) -> String {
    let parameters = |fault: &Fault| serde_json::to_value(fault).unwrap_or_default()[fault.name()].clone();
    let (own, first) = (parameters(fault), all.iter().find(|other| other.name() == fault.name()).map(parameters));
    let own = own.as_object().into_iter().flatten();
    let other = own.filter(|(key, value)| first.as_ref().is_some_and(|first| first[key.as_str()] != **value));
    let other: Vec<String> = other
        .filter_map(|(key, value)| match value {
            Value::Null => None,
            Value::String(text) => Some(format!(", {key}: {text}")),
            Value::Array(list) if list.is_empty() => None,
            // Such as that it is a ramp.
            Value::Object(map) => {
                Some(format!(", {key}: {}", map.keys().map(String::as_str).collect::<Vec<_>>().join(", ")))
            }
            _ => Some(format!(", {key}: {value}")),
        })
        .collect();
    format!("{}{}", fault.name(), other.concat())
}

/// Folder of the examples, for a binary that runs where the repository cannot be seen.
const EXAMPLES: &str = "FIREDRILL_EXAMPLES";

/// That of [`EXAMPLES`], else of this repository; in a guest, of its root.
fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(EXAMPLES) {
        return Some(folder.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    [here, Path::new("/")].into_iter().map(|root| root.join("experiments/faults")).find(|folder| folder.is_dir())
}

fn samples(folder: &Path, name: &str) -> Result<Vec<Fault>, String> {
    let path = folder.join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).map_err(|e| format!("`{name}` has no example, {}: {e}", path.display()))?;
    let documents = parse(&path.display().to_string(), &text).map_err(|e| e.to_string())?;
    let experiments =
        documents.into_iter().filter_map(|d| if let Document::Experiment(e) = d { Some(e) } else { None });
    let mut found: Vec<Fault> = Vec::new();
    for fault in experiments.flat_map(|e| e.steps).flat_map(|step| step.value.inject).map(|fault| fault.value) {
        if fault.name() == name && !found.contains(&fault) {
            found.push(fault);
        }
    }
    if found.is_empty() { Err(format!("{} injects no `{name}`", path.display())) } else { Ok(found) }
}
