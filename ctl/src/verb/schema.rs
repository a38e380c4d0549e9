//! `firedrill schema`: JSON Schemas, for editors and generators.

use anyhow::Result;
use firedrill_model::fault::{Fault, TABLE};
use firedrill_model::file::{KINDS, did_you_mean, schema};
use firedrill_model::verdict::ExitCode;

use super::UsageError;
use crate::cli::SchemaArgs;
use crate::render::say::say;

pub fn run(args: &SchemaArgs) -> Result<ExitCode> {
    let value = match &args.kind {
        None => {
            let all: serde_json::Map<String, serde_json::Value> =
                KINDS.iter().filter_map(|kind| Some(((*kind).to_owned(), schema(kind)?.to_value()))).collect();
            serde_json::Value::Object(all)
        }
        Some(name) => match schema(name).or_else(|| Fault::schema(name)) {
            Some(schema) => schema.to_value(),
            None => {
                let known = KINDS.iter().copied().chain(TABLE.iter().map(|(name, _)| *name));
                return Err(UsageError(format!("there is no schema `{name}`; {}", did_you_mean(name, known))).into());
            }
        },
    };
    say(serde_json::to_string_pretty(&value)?)?;
    Ok(ExitCode::Held)
}
