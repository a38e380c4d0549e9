//! `web`: renders the checkout page, for which it needs the customer's session from one of the session stores.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::http::{self, Patience, Reply};
use super::upstream::Upstreams;

/// Longer than a store waits for its data.
const STORE: Patience = Patience { connect: Duration::from_millis(200), answer: Duration::from_millis(350) };

/// Serves for ever.
pub async fn run(listener: TcpListener, name: String, stores: &[SocketAddr]) {
    let stores = Upstreams::new(stores, STORE);
    stores.watch();
    let name: Arc<str> = name.into();
    http::serve(listener, move |path| {
        let (name, stores) = (Arc::clone(&name), Arc::clone(&stores));
        async move {
            match path.as_str() {
                // Of this process alone: a health check that asked the stores too would take all replicas out of
                // service at once.
                "/health" => Reply::ok("ok\n"),
                "/checkout" => {
                    let session = stores.get("/session/7").await;
                    match session.status {
                        200 => Reply::ok(format!("checkout ok\nserved by {name}\n{}", session.body)),
                        _ => Reply::of(502, format!("no session: {}", session.body)),
                    }
                }
                _ => Reply::of(404, "there is only /checkout\n"),
            }
        }
    })
    .await;
}
