//! TAP devices and what must be asked of other links by `ioctl`.

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

/// `ARPHRD_ETHER`.
pub const HARDWARE_ETHERNET: u16 = libc::ARPHRD_ETHER;
/// `ARPHRD_LOOPBACK`: has an Ethernet header, too.
pub const HARDWARE_LOOPBACK: u16 = libc::ARPHRD_LOOPBACK;

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
/// Since Linux 6.2.
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// A TAP of this process: it ends when the descriptor is closed.
#[derive(Debug)]
pub struct Tap {
    /// Frames, each behind a `virtio_net_hdr`.
    pub file: File,
    /// Its name.
    pub name: String,
}

/// Makes a TAP in the calling thread's network namespace, non-blocking, with a `virtio_net_hdr` in front of each frame
/// and segmentation offloads, and not up yet. `template` is a name with `%d`, which the kernel replaces.
///
/// # Errors
/// No `/dev/net/tun`, no privilege, or the kernel has no TUN/TAP driver.
pub fn create_tap(template: &str) -> io::Result<Tap> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = request(template)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF takes an ifreq and writes the name into it.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let offload = |flags: u32| {
        // SAFETY: TUNSETOFFLOAD takes a number.
        checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    };
    offload(base | TUN_F_USO4 | TUN_F_USO6).or_else(|_| offload(base))?;
    let name = name_of(&request);
    Ok(Tap { file, name })
}

/// Sets the queue length of a link (packets) of the thread's namespace, or the longest that the kernel takes below it:
/// recent ones have a limit. Gives the length set.
///
/// # Errors
/// The link is gone, the caller lacks CAP_NET_ADMIN, or not even a sixteenth is taken.
pub fn set_queue_len(name: &str, wanted: i32) -> io::Result<i32> {
    let socket = ioctl_socket()?;
    let mut request = request(name)?;
    let mut len = wanted;
    loop {
        request.ifr_ifru.ifru_metric = len;
        // SAFETY: SIOCSIFTXQLEN takes an ifreq with the length in the place of the metric.
        match checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &raw mut request) }) {
            Ok(()) => return Ok(len),
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && len > wanted / 16 => len /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Sets the MTU (bytes) of a link of the thread's namespace, and brings it up without ARP.
///
/// # Errors
/// The link is gone or the caller lacks CAP_NET_ADMIN.
pub fn bring_up(name: &str, mtu: i32) -> io::Result<()> {
    let socket = ioctl_socket()?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu;
    // SAFETY: SIOCSIFMTU takes an ifreq with the MTU.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS fills the flags in.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the member that the kernel has just filled in.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_NOARP) as i16;
    // SAFETY: SIOCSIFFLAGS takes an ifreq with the flags.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })
}

/// The hardware type (`ARPHRD_*`) of a link of the thread's namespace: says which link-layer header it has.
///
/// # Errors
/// The link is gone.
pub fn hardware_type(name: &str) -> io::Result<u16> {
    let socket = ioctl_socket()?;
    let mut request = request(name)?;
    // SAFETY: SIOCGIFHWADDR fills the address in.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: the member that the kernel has just filled in.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr }.sa_family)
}

fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    checked(fd)?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.as_bytes().contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot be the name of an interface"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    // SAFETY: the kernel ends the name with NUL inside the array.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    name.to_string_lossy().into_owned()
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
