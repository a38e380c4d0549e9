//! `lb`: the load balancer that users meet. It asks the web replicas in turn, and another one when one fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::http::{self, Patience, Reply};
use super::upstream::Upstreams;

/// Longer than a web replica needs when it must fail over between the stores itself.
const WEB: Patience = Patience { connect: Duration::from_millis(250), answer: Duration::from_millis(800) };

/// Serves for ever.
pub async fn run(listener: TcpListener, webs: &[SocketAddr]) {
    let webs = Upstreams::new(webs, WEB);
    webs.watch();
    http::serve(listener, move |path| {
        let webs = Arc::clone(&webs);
        async move {
            match path.as_str() {
                "/health" => Reply::ok("ok\n"),
                _ => webs.get(&path).await,
            }
        }
    })
    .await;
}
