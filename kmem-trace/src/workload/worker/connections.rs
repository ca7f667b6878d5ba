//! Servers and clients: loopback TCP connections, made one after the other and held open. Nothing
//! is kept in user space but the file descriptors.

use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{IntoRawFd, OwnedFd},
};

use super::{Fault, hold};
use crate::workload::{
    message::{Channel, Report},
    plan::{CONNECTIONS_PER_ADDRESS, FIRST_PORT},
};

/// A client may be this many batches ahead of its server. The product stays below the smallest
/// accept queue (128), where the kernel would drop a SYN and the client wait a second.
const BATCHES_AHEAD: u64 = 3;
const BATCH: u64 = 32;
const _: () = assert!(BATCHES_AHEAD * BATCH < 128);
const REPORT_EVERY: u64 = 256;

/// Listens on the port of this pair, on all addresses.
pub fn listen(pair: usize) -> io::Result<TcpListener> {
    let port = u16::try_from(pair)
        .ok()
        .and_then(|pair| FIRST_PORT.checked_add(pair));
    let port = port.ok_or(io::ErrorKind::AddrNotAvailable)?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
}

/// Accepts `count` connections and holds them. Gives a byte of credit for each batch.
pub fn serve(
    channel: &Channel,
    worker: u32,
    listener: &TcpListener,
    credit: Option<OwnedFd>,
    count: u64,
) -> Result<(), Fault> {
    let mut credit = PipeWriter::from(credit.ok_or(Fault::PartnerGone)?);
    for done in 1..=count {
        let (stream, _) = listener.accept().map_err(Fault::doing(&format!(
            "accept connection {done} of {count}"
        )))?;
        // Open until the process ends.
        let _ = stream.into_raw_fd();
        if done.is_multiple_of(BATCH) && done < count {
            // A client that is done with its last batch no longer reads: that is no fault.
            let _ = credit.write_all(&[0]);
        }
        if done.is_multiple_of(REPORT_EVERY) {
            channel.offer(&Report::Progress {
                worker,
                connections: done,
                bytes: 0,
            });
        }
    }
    channel
        .send(&Report::Ready {
            worker,
            connections: count,
            bytes: 0,
        })
        .map_err(Fault::doing("report"))?;
    hold()
}

/// Makes `count` connections to the listener and holds them.
pub fn connect(
    channel: &Channel,
    worker: u32,
    listener: &TcpListener,
    credit: Option<OwnedFd>,
    count: u64,
) -> Result<(), Fault> {
    let mut credit = PipeReader::from(credit.ok_or(Fault::PartnerGone)?);
    let port = listener
        .local_addr()
        .map_err(Fault::doing("ask for its port"))?
        .port();
    for done in 0..count {
        if done.is_multiple_of(BATCH) && done / BATCH >= BATCHES_AHEAD {
            credit
                .read_exact(&mut [0])
                .map_err(|_| Fault::PartnerGone)?;
        }
        let address = address(done, port);
        let stream = TcpStream::connect(address).map_err(Fault::doing(&format!(
            "make connection {} of {count} to {address}",
            done + 1
        )))?;
        let _ = stream.into_raw_fd();
    }
    channel
        .send(&Report::Ready {
            worker,
            connections: 0,
            bytes: 0,
        })
        .map_err(Fault::doing("report"))?;
    hold()
}

/// Where connection `index` goes: all of 127/8 is local, and each address gives another range of
/// local ports.
pub fn address(index: u64, port: u16) -> SocketAddrV4 {
    let nth = u32::try_from(index / CONNECTIONS_PER_ADDRESS).unwrap_or(u32::MAX);
    // The last addresses of 127/8 are never reached: there are not so many file descriptors.
    let ip = u32::from(Ipv4Addr::LOCALHOST)
        .saturating_add(nth)
        .min(0x7fff_fffe);
    SocketAddrV4::new(Ipv4Addr::from(ip), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_gets_its_share_of_connections() {
        let ip = |index| address(index, 1).ip().to_string();
        assert_eq!(ip(0), "127.0.0.1");
        assert_eq!(ip(CONNECTIONS_PER_ADDRESS - 1), "127.0.0.1");
        assert_eq!(ip(CONNECTIONS_PER_ADDRESS), "127.0.0.2");
        assert_eq!(ip(CONNECTIONS_PER_ADDRESS * 255), "127.0.1.0");
        assert_eq!(ip(u64::MAX), "127.255.255.254");
    }
}
