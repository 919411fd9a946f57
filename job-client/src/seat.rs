//! Taking part in a job that several workers do together: waiting for the rest, and telling where to meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use protocol::leases::{LeasedJob, RendezvousRequest, Seat};
use tokio::sync::watch;

use crate::client::{Client, ClientError};
use crate::lease::Pauses;

/// One process's place among those that do one job together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Its number, from 0; rank 0 serves the store and saves checkpoints.
    pub rank: u32,
    /// Number of processes.
    pub ranks: u32,
    /// Where rank 0's store listens.
    pub store: SocketAddr,
    /// Tells attempts apart: no two that could reach the same store may share it.
    pub generation: String,
}

/// A worker's place in a gang that has met, with the socket for its store where it is rank 0.
pub type Gathered = (Gang, Option<TcpListener>);

/// How waiting for the rest of a gang ended.
#[derive(Debug)]
pub(crate) enum Met {
    /// All are there.
    Gang(Gang),
    /// The worker is to stop; the seat is still its own.
    Stopped,
}

/// Waits for the rest of a gang, for as long as the coordinator keeps the seat.
///
/// # Errors
/// [`ClientError::LeaseLost`] where the seat is lost, or what else the coordinator refuses.
pub(crate) async fn meet(
    client: &Client,
    job: &LeasedJob,
    seat: Seat,
    address: Option<SocketAddr>,
    stop: &mut watch::Receiver<bool>,
) -> Result<Met, ClientError> {
    let request = RendezvousRequest {
        lease_token: job.lease_token,
        address,
        wait_seconds: job.heartbeat_seconds.max(1),
    };
    let mut pauses = Pauses::default();
    while !*stop.borrow() {
        let reply = tokio::select! {
            reply = client.rendezvous(job.job_id, &request) => reply,
            _ = stop.changed() => continue,
        };
        match reply {
            Ok(reply) => {
                pauses = Pauses::default();
                if let Some(meeting) = reply.meeting {
                    return Ok(Met::Gang(Gang {
                        rank: seat.rank,
                        ranks: seat.ranks,
                        store: meeting.store,
                        generation: meeting.generation,
                    }));
                }
            }
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "the rest of the gang cannot be waited for; trying again");
                tokio::time::sleep(pauses.next()).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Met::Stopped)
}

/// A socket for rank 0's store, held until the store takes it, and its address: of the host that others reach this worker
/// by, or else the one by which it reaches the coordinator.
///
/// # Errors
/// Where the host has no address, or it is not this machine's.
pub(crate) fn store_socket(advertised: Option<&str>, server: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let ip = match advertised {
        Some(host) => resolve(host, 0).with_context(|| format!("--advertise {host}"))?.ip(),
        None => {
            towards(server).with_context(|| format!("no way to {server} is known; name this host (--advertise)"))?
        }
    };
    // Any interface, since a host may be known by an outer address.
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = TcpListener::bind((any, 0)).context("no port is free")?;
    let port = listener.local_addr()?.port();
    Ok((listener, SocketAddr::new(ip, port)))
}

/// The address that packets to a server leave from; none is sent.
fn towards(server: &str) -> anyhow::Result<IpAddr> {
    let url = reqwest::Url::parse(server)?;
    let host = url.host_str().context("it names no host")?;
    let there = resolve(host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or(80))?;
    let unspecified = match there {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(unspecified)?;
    socket.connect(there)?;
    Ok(socket.local_addr()?.ip())
}

fn resolve(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let mut found = (host, port).to_socket_addrs()?;
    found.next().with_context(|| format!("{host} has no address"))
}

/// How long a rank that has done its share tries to say so.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_met_where_it_says_or_where_it_reaches_the_coordinator_from() {
        let (socket, own) = store_socket(None, "http://127.0.0.1:8080").unwrap();
        assert!(own.ip().is_loopback() && own.port() > 0, "{own}");
        assert_eq!(
            socket.local_addr().unwrap().port(),
            own.port(),
            "nobody else can take it"
        );
        let (_, told) = store_socket(Some("10.1.2.3"), "http://127.0.0.1:8080").unwrap();
        assert_eq!(told.ip(), IpAddr::from([10, 1, 2, 3]));
        assert!(store_socket(None, "nowhere").is_err());
        let wrong = store_socket(Some("not a host"), "http://127.0.0.1:8080").unwrap_err();
        assert!(format!("{wrong:#}").contains("--advertise not a host"), "{wrong:#}");
    }
}
