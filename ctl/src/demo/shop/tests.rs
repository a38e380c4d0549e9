//! The whole shop on loopback, in one process: does it behave as the demo's drills take for granted?

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::http::{Patience, Reply};
use super::*;

const USER: Patience = Patience { connect: Duration::from_secs(1), answer: Duration::from_secs(2) };

struct Shop {
    front: SocketAddr,
    webs: Vec<JoinHandle<()>>,
    stores: Vec<JoinHandle<()>>,
    db: JoinHandle<()>,
}

impl Shop {
    async fn open() -> Self {
        let (listener, db_address) = bound().await;
        let db = tokio::spawn(db::run(listener));
        let (mut stores, mut store_addresses) = (Vec::new(), Vec::new());
        for i in 1..=2 {
            let (listener, address) = bound().await;
            stores.push(tokio::spawn(store::run(listener, format!("store-{i}"), db_address)));
            store_addresses.push(address);
        }
        let (mut webs, mut web_addresses) = (Vec::new(), Vec::new());
        for i in 1..=3 {
            let (listener, address) = bound().await;
            let to = store_addresses.clone();
            webs.push(tokio::spawn(async move { web::run(listener, format!("web-{i}"), &to).await }));
            web_addresses.push(address);
        }
        let (listener, front) = bound().await;
        tokio::spawn(async move { lb::run(listener, &web_addresses).await });
        Self { front, webs, stores, db }
    }

    async fn checkout(&self) -> Reply {
        http::get(self.front, "/checkout", USER).await.expect("the load balancer answers")
    }
}

async fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

async fn end(task: &JoinHandle<()>) {
    task.abort();
    while !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn every_web_replica_gets_its_share_of_the_checkouts() {
    let shop = Shop::open().await;
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..9 {
        let reply = shop.checkout().await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(reply.body.starts_with("checkout ok"), "{}", reply.body);
        served.extend(reply.body.lines().nth(1).map(str::to_owned));
    }
    assert_eq!(served.len(), 3, "{served:?}");
}

#[tokio::test]
async fn one_web_replica_and_one_store_can_go_without_a_failed_checkout() {
    let shop = Shop::open().await;
    end(&shop.webs[1]).await;
    end(&shop.stores[0]).await;
    for _ in 0..12 {
        let before = Instant::now();
        assert_eq!(shop.checkout().await.status, 200);
        assert!(before.elapsed() < Duration::from_millis(500), "{:?}", before.elapsed());
    }
}

#[tokio::test]
async fn without_the_shared_datastore_both_stores_are_useless() {
    let shop = Shop::open().await;
    assert_eq!(shop.checkout().await.status, 200);
    end(&shop.db).await;
    for _ in 0..6 {
        assert_eq!(shop.checkout().await.status, 502);
    }
}

#[test]
fn the_arguments_that_start_a_service_are_understood() {
    let to = ["10.0.0.2:80".parse().expect("valid"), "[fd00::2]:80".parse().expect("valid")];
    let line = service_args("web", "web-1", "0.0.0.0:80".parse().expect("valid"), &to);
    let args = Args::try_parse_from(line).expect("valid");
    let Role::Service { role } = args.role else { panic!("not a service: {args:?}") };
    let (name, serve) = role.parts();
    assert_eq!((name, serve.name.as_str(), serve.to.len()), ("web", "web-1", 2));
}
