//! Reports: pure functions of a run, read back from its log.
//!
//! [`words`] and [`digest`] say things once; the others lay them out. Nothing here opens a file or asks the host,
//! except [`paint::Screen`], which asks what the terminal can do. [`say`](say::say) and [`live`] print.

pub mod chart;
pub mod diagnostic;
pub mod digest;
pub mod graph;
pub mod html;
pub mod json;
pub mod junit;
pub mod live;
pub mod markdown;
pub mod paint;
pub mod plan;
pub mod say;
pub mod spark;
pub mod summary;
pub mod svg;
pub mod words;

#[cfg(test)]
mod sample;
