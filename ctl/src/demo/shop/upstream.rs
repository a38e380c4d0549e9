//! What stands behind a role: replicas of the next one, asked in turn, with health checks and one retry on each other
//! replica. A replica that is gone costs a refused connection and a retry, one that hangs costs a time-out until the
//! health check takes it out. A slow one stays in: it is slow for its share of the requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::http::{self, Patience, Reply};

/// Time between two health checks of a replica.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// A health check fails after this. Well above what the demo's `latency` drill adds, so that slow is not dead.
const CHECK_WITHIN: Patience = Patience { connect: Duration::from_millis(300), answer: Duration::from_millis(300) };

/// Replicas of the next role.
#[derive(Debug)]
pub struct Upstreams {
    replicas: Vec<Upstream>,
    next: AtomicUsize,
    patience: Patience,
}

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    up: AtomicBool,
}

impl Upstreams {
    /// Replicas at these addresses, all taken to be up at first.
    pub fn new(addresses: &[SocketAddr], patience: Patience) -> Arc<Self> {
        let replicas = addresses.iter().map(|&address| Upstream { address, up: AtomicBool::new(true) }).collect();
        Arc::new(Self { replicas, next: AtomicUsize::new(0), patience })
    }

    /// Asks one replica after the other, beginning with the next in turn, until one answers: an error status is an
    /// answer. Those known to be down come last: when all are down, they are still better than nothing.
    pub async fn get(&self, path: &str) -> Reply {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<&Upstream> =
            (0..self.replicas.len()).map(|i| &self.replicas[(turn + i) % self.replicas.len()]).collect();
        // Stable: the turn is kept among those that are up.
        order.sort_by_key(|u| !u.up.load(Ordering::Relaxed));
        let mut last = Reply::of(502, "there is no upstream\n");
        for upstream in order {
            match http::get(upstream.address, path, self.patience).await {
                Ok(reply) => return reply,
                Err(error) => {
                    upstream.up.store(false, Ordering::Relaxed);
                    last = Reply::of(502, format!("{error}\n"));
                }
            }
        }
        last
    }

    /// Checks the health of every replica for ever.
    pub fn watch(self: &Arc<Self>) {
        for i in 0..self.replicas.len() {
            let pool = Arc::clone(self);
            tokio::spawn(async move {
                let upstream = &pool.replicas[i];
                loop {
                    let well =
                        http::get(upstream.address, "/health", CHECK_WITHIN).await.is_ok_and(|r| r.status == 200);
                    upstream.up.store(well, Ordering::Relaxed);
                    tokio::time::sleep(CHECK_EVERY).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Patience = Patience { connect: Duration::from_millis(300), answer: Duration::from_millis(300) };

    async fn replica(status: u16, body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(http::serve(listener, move |_| async move { Reply::of(status, body) }));
        address
    }

    /// An address that refuses connections: it was ours a moment ago.
    async fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound")
    }

    #[tokio::test]
    async fn replicas_take_turns() {
        let pool = Upstreams::new(&[replica(200, "a").await, replica(200, "b").await], PATIENCE);
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(pool.get("/").await.body);
        }
        assert_eq!(seen, ["a", "b", "a", "b"]);
    }

    #[tokio::test]
    async fn a_replica_that_is_gone_is_not_noticed_by_the_caller() {
        let pool = Upstreams::new(&[nobody().await, replica(200, "b").await], PATIENCE);
        for _ in 0..6 {
            assert_eq!(pool.get("/").await.body, "b");
        }
    }

    #[tokio::test]
    async fn an_error_status_is_handed_on_and_nobody_is_a_502() {
        let pool = Upstreams::new(&[replica(503, "no db").await, replica(200, "b").await], PATIENCE);
        assert_eq!(pool.get("/").await.status, 503);
        assert_eq!(pool.get("/").await.status, 200);
        let pool = Upstreams::new(&[nobody().await, nobody().await], PATIENCE);
        assert_eq!(pool.get("/").await.status, 502);
    }

    #[tokio::test]
    async fn a_replica_that_hangs_is_taken_out_by_the_health_check() {
        // It accepts (in the backlog), and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addresses = [silent.local_addr().expect("bound"), replica(200, "b").await];
        let pool = Upstreams::new(&addresses, PATIENCE);
        pool.watch();
        tokio::time::sleep(CHECK_WITHIN.answer + Duration::from_millis(200)).await;
        let before = std::time::Instant::now();
        for _ in 0..4 {
            assert_eq!(pool.get("/").await.body, "b");
        }
        assert!(before.elapsed() < PATIENCE.answer, "{:?}", before.elapsed());
    }
}
