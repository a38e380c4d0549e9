//! `store`: a replica of the session store. There are two of them, so it is said to be redundant; but both keep their
//! sessions in one and the same datastore.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use super::http::{self, Patience, Reply};

const DB: Patience = Patience { connect: Duration::from_millis(150), answer: Duration::from_millis(150) };

/// Serves for ever.
pub async fn run(listener: TcpListener, name: String, db: SocketAddr) {
    http::serve(listener, move |path| {
        let name = name.clone();
        async move {
            match path.strip_prefix("/session/") {
                Some(id) => match http::get(db, &format!("/row/{id}"), DB).await {
                    Ok(row) if row.status == 200 => Reply::ok(format!("session from {name}: {}", row.body)),
                    Ok(row) => Reply::of(503, format!("the datastore says {}\n", row.status)),
                    Err(error) => Reply::of(503, format!("datastore: {error}\n")),
                },
                None if path == "/health" => Reply::ok("ok\n"),
                None => Reply::of(404, "ask for /session/ID\n"),
            }
        }
    })
    .await;
}
