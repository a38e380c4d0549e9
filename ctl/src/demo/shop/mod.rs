//! The shop of the demo: real processes of this binary, started by the hidden command `firedrill shop`.
//!
//! ```text
//!  users ──▶ lb ──▶ web-1, web-2, web-3 ──▶ store-1, store-2 ──▶ db
//! ```
//!
//! Everything behind the load balancer has replicas, but the datastore, which is the point of the demo.

mod db;
mod http;
mod lb;
mod service;
mod store;
mod upstream;
mod web;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;

pub use http::parse as parse_answer;
pub use service::{CONTROL_PORT, Word};

/// Arguments of `firedrill shop`.
#[derive(Debug, Parser)]
#[command(about = "Run one process of the demo's shop")]
pub struct Args {
    #[command(subcommand)]
    role: Role,
}

/// What a process of the shop is.
#[derive(Debug, Subcommand)]
pub enum Role {
    #[command(flatten)]
    Served(ServedRole),
    /// Run one of the above as a service that can be stopped and started
    Service {
        /// The role and its arguments
        #[command(subcommand)]
        role: ServedRole,
    },
    /// Forward packets between the nodes, for both families
    Router {
        /// Name of the namespace that it is in, to be sure that it is not another's
        netns: String,
    },
    /// Stop or start the service in a network namespace
    Tell {
        /// Name under /run/netns
        netns: String,
        /// What it shall do
        #[arg(value_enum)]
        word: Word,
    },
}

/// Roles that a service runs.
#[derive(Debug, Subcommand)]
pub enum ServedRole {
    /// Load balancer over web replicas
    Lb(Serve),
    /// Web replica: renders the checkout
    Web(Serve),
    /// Session store replica
    Store(Serve),
    /// The datastore
    Db(Serve),
}

/// Where a role listens, and whom it asks.
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// Its name in answers
    #[arg(long)]
    name: String,
    /// Address and port to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// Addresses of the next role's replicas
    #[arg(long = "to")]
    to: Vec<SocketAddr>,
}

impl ServedRole {
    /// Its name on the command line, and its arguments.
    fn parts(&self) -> (&'static str, &Serve) {
        match self {
            Self::Lb(serve) => ("lb", serve),
            Self::Web(serve) => ("web", serve),
            Self::Store(serve) => ("store", serve),
            Self::Db(serve) => ("db", serve),
        }
    }
}

/// The arguments, after the program's name, that start `role` as a service.
pub fn service_args(role: &str, name: &str, listen: SocketAddr, to: &[SocketAddr]) -> Vec<String> {
    let mut args: Vec<String> = ["shop", "service"].map(String::from).to_vec();
    args.extend(role_args(role, name, listen, to));
    args
}

fn role_args(role: &str, name: &str, listen: SocketAddr, to: &[SocketAddr]) -> Vec<String> {
    let mut args = vec![role.to_owned(), "--name".into(), name.to_owned(), "--listen".into(), listen.to_string()];
    args.extend(to.iter().flat_map(|address| ["--to".to_owned(), address.to_string()]));
    args
}

/// The arguments that start the router between the nodes.
pub fn router_args(netns: &str) -> Vec<String> {
    ["shop", "router", netns].map(String::from).to_vec()
}

/// Runs one process of the shop until it is killed; `tell` returns when it is done.
///
/// # Errors
/// When it cannot listen, or what it was told could not be done.
pub fn main(args: Args) -> anyhow::Result<()> {
    if let Role::Tell { netns, word } = &args.role {
        // Before any runtime: it moves this very thread into the namespace.
        return Ok(service::tell(netns, *word)?);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        // Ctrl-C at the demo's terminal reaches every process of its group. It is the demo that ends the shop, after
        // it has reverted its faults.
        let _ignored = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
        match args.role {
            Role::Service { role } => {
                let (role, serve) = role.parts();
                let me = std::env::current_exe().context("cannot find this program")?;
                let mut child = vec!["shop".to_owned()];
                child.extend(role_args(role, &serve.name, serve.listen, &serve.to));
                let control = SocketAddr::from((Ipv4Addr::LOCALHOST, CONTROL_PORT));
                let ready = SocketAddr::from((Ipv4Addr::LOCALHOST, serve.listen.port()));
                Ok(service::run(control, &me.to_string_lossy(), &child, ready).await?)
            }
            Role::Served(role) => serve(role).await,
            Role::Router { netns } => router(&netns).await,
            Role::Tell { .. } => Ok(()),
        }
    })
}

/// Lets its own network namespace forward packets, and stays. The settings go with the namespace.
async fn router(netns: &str) -> anyhow::Result<()> {
    let inode = |path: &str| std::fs::metadata(path).map(|m| m.ino()).with_context(|| format!("cannot look at {path}"));
    if inode("/proc/self/ns/net")? != inode(&format!("/run/netns/{netns}"))? {
        bail!("this is not network namespace {netns}; the router changes settings only in its own");
    }
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        // `/proc/sys/net` shows the namespace of the process that looks. Without IPv6 in the kernel, there is none.
        let path = format!("/proc/sys/net/{key}");
        if std::path::Path::new(&path).exists() {
            std::fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
        }
    }
    std::future::pending().await
}

async fn serve(role: ServedRole) -> anyhow::Result<()> {
    let (_, serve) = role.parts();
    let listener = listen(serve).await?;
    match role {
        ServedRole::Lb(serve) => lb::run(listener, &serve.to).await,
        ServedRole::Web(serve) => web::run(listener, serve.name, &serve.to).await,
        ServedRole::Store(serve) => {
            let db = *serve.to.first().context("a store needs `--to` with the datastore's address")?;
            store::run(listener, serve.name, db).await;
        }
        ServedRole::Db(_) => db::run(listener).await,
    }
    Ok(())
}

async fn listen(serve: &Serve) -> anyhow::Result<TcpListener> {
    TcpListener::bind(serve.listen).await.with_context(|| format!("{} cannot listen on {}", serve.name, serve.listen))
}

#[cfg(test)]
mod tests;
