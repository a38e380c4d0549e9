//! Where the connections were to go that go to a listener of ours.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, Map, MapData};
use firedrill_abi::Original;

use super::CallsError;
use crate::crash_point;
use crate::dataplane::{DataPlaneError, map_error};
use crate::sys::bpf::Shared;

const NAME: &str = "ORIGINALS";

/// A handle: copies are of the same connections.
#[derive(Clone)]
pub struct Originals(Arc<Mutex<HashMap<MapData, u64, Shared<Original>>>>);

impl Originals {
    /// With a descriptor of its own.
    pub(super) fn of(bpf: &aya::Ebpf) -> Result<Self, CallsError> {
        let failed = |reason: String| CallsError::Programs(DataPlaneError::Map { map: NAME, reason });
        let Some(Map::HashMap(map)) = bpf.map(NAME) else {
            return Err(failed("the object does not have it: rebuild it".into()));
        };
        let own = map.fd().as_fd().try_clone_to_owned().map_err(|error| failed(error.to_string()))?;
        let map = MapData::from_fd(own).map_err(map_error(NAME))?;
        Ok(Self(Arc::new(Mutex::new(HashMap::try_from(Map::HashMap(map)).map_err(map_error(NAME))?))))
    }

    fn map(&self) -> MutexGuard<'_, HashMap<MapData, u64, Shared<Original>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the connection of a socket was to go.
    pub fn peer(&self, cookie: u64) -> Option<SocketAddr> {
        let Shared(original) = self.map().get(&cookie, 0).ok()?;
        Some(SocketAddr::new(address(original.peer), u16::try_from(original.peer_port).ok()?))
    }

    /// Has the owner of the socket see this as its own address.
    pub fn set_local(&self, cookie: u64, local: SocketAddr) {
        let mut map = self.map();
        if let Ok(Shared(original)) = map.get(&cookie, 0) {
            let own = Original { local: words(local.ip()), local_port: local.port().into(), ..original };
            // Without it the owner sees its address on the loopback interface.
            let _ = crash_point::around("original.write", || map.insert(cookie, Shared(own), 0));
        }
    }

    /// The connection has ended.
    pub fn forget(&self, cookie: u64) {
        let mut map = self.map();
        // One that is not there is no error.
        let _ = crash_point::around("original.remove", || map.remove(&cookie));
    }
}

fn address(words: [u64; 2]) -> IpAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&words[0].to_ne_bytes());
    octets[8..].copy_from_slice(&words[1].to_ne_bytes());
    Ipv6Addr::from(octets).to_canonical()
}

fn words(address: IpAddr) -> [u64; 2] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let word = |half: &[u8]| half.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    [word(&octets[..8]).to_le(), word(&octets[8..]).to_le()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_after_its_way_through_the_kernel() {
        for text in ["10.1.2.3", "127.0.0.1", "::1", "2001:db8::7"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address(words(ip)), ip);
        }
    }
}
