//! The processes of one training, and what they do together.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::{Gang, GroupError};
use crate::shim::c10d::{C10dError, Collectives, Joining, Work};

/// What an all-reduce leaves in every rank's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// The sum over ranks.
    Sum,
    /// The mean over ranks.
    Mean,
}

/// Membership of a group; left when the last clone is dropped.
///
/// All ranks must call the same collectives in the same order with tensors of the same shapes. After an error the group
/// is of no more use: drop it, and join a new generation.
#[derive(Debug, Clone)]
pub struct Group {
    rank: u32,
    ranks: u32,
    device: Device,
    collectives: Arc<Collectives>,
}

impl Group {
    /// Joins the group and returns once all ranks have. Tensors will be on `device`; `timeout` limits this call and
    /// every later collective: a lost peer is an error by then, and at once where its connections are closed.
    ///
    /// # Errors
    /// Where the place is none, rank 0 cannot listen, or not all ranks come in time.
    pub fn join(gang: &Gang, device: Device, timeout: Duration) -> Result<Self, GroupError> {
        let listener = match gang.rank {
            0 => Some(listen(gang.store).map_err(|source| GroupError::Listen {
                store: gang.store,
                source,
            })?),
            _ => None,
        };
        Self::join_with(gang, listener, device, timeout)
    }

    /// [`Self::join`] for a rank 0 that has bound the socket of `gang.store` already, so that nobody else could take
    /// the port before.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub fn join_listening(
        gang: &Gang,
        listener: TcpListener,
        device: Device,
        timeout: Duration,
    ) -> Result<Self, GroupError> {
        Self::join_with(gang, Some(listener), device, timeout)
    }

    pub(super) fn join_with(
        gang: &Gang,
        listener: Option<TcpListener>,
        device: Device,
        timeout: Duration,
    ) -> Result<Self, GroupError> {
        let Gang { rank, ranks, store, .. } = *gang;
        if rank >= ranks || (rank == 0) != listener.is_some() {
            return Err(GroupError::Place { rank, ranks });
        }
        let joining = Joining {
            rank,
            ranks,
            store,
            listener,
            prefix: &gang.generation,
            own_address: own_address(store)?,
            device,
            timeout,
        };
        let collectives = Collectives::join(joining).map_err(|source| GroupError::Join {
            rank,
            ranks,
            store,
            source,
        })?;
        let group = Self {
            rank,
            ranks,
            device,
            collectives: Arc::new(collectives),
        };
        // Rank 0 might else be done, its store gone, while others still look up their peers.
        group.barrier()?;
        Ok(group)
    }

    /// This process's number.
    #[must_use]
    pub const fn rank(&self) -> u32 {
        self.rank
    }

    /// Number of processes.
    #[must_use]
    pub const fn ranks(&self) -> u32 {
        self.ranks
    }

    /// What carries the collectives: `nccl` or `gloo`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        if self.collectives.is_nccl() { "nccl" } else { "gloo" }
    }

    /// Replaces tensors by their sum or mean over the ranks; all ranks get the same bits.
    ///
    /// # Errors
    /// Where a peer is lost.
    pub fn all_reduce(&self, tensors: &mut [Tensor], reduction: Reduction) -> Result<(), GroupError> {
        self.in_place("an all-reduce", tensors, |dense| self.collectives.start_sum(dense))?;
        if reduction == Reduction::Mean {
            for tensor in tensors {
                let _ = tch::no_grad(|| tensor.f_div_scalar_(f64::from(self.ranks)))?;
            }
        }
        Ok(())
    }

    /// Replaces tensors by those of `root`.
    ///
    /// # Errors
    /// Where a peer is lost.
    pub fn broadcast(&self, tensors: &[Tensor], root: u32) -> Result<(), GroupError> {
        self.in_place("a broadcast", tensors, |dense| {
            self.collectives.start_broadcast(dense, root)
        })
    }

    /// Returns once all ranks have called it.
    ///
    /// # Errors
    /// Where a peer is lost.
    pub fn barrier(&self) -> Result<(), GroupError> {
        let token = Tensor::zeros([1], (Kind::Float, self.device));
        self.in_place("a barrier", &[token], |dense| self.collectives.start_sum(dense))
    }

    /// Starts to replace a contiguous tensor by its sum over the ranks.
    pub(super) fn start_sum(&self, tensor: &Tensor) -> Result<Work, GroupError> {
        let started = self.collectives.start_sum(tensor);
        started.map_err(|source| self.failed("an all-reduce", source))
    }

    /// Waits for what [`Self::start_sum`] has started.
    pub(super) fn wait(&self, work: Work) -> Result<(), GroupError> {
        work.wait().map_err(|source| self.failed("an all-reduce", source))
    }

    fn in_place(
        &self,
        what: &'static str,
        tensors: &[Tensor],
        start: impl Fn(&Tensor) -> Result<Work, C10dError>,
    ) -> Result<(), GroupError> {
        // Engines take contiguous memory on the group's device; what is so already is not copied.
        let dense = |t: &Tensor| t.f_detach()?.f_to_device(self.device)?.f_contiguous();
        let dense: Vec<Tensor> = tensors.iter().map(dense).collect::<Result<_, _>>()?;
        let failed = |source| self.failed(what, source);
        let works: Vec<Work> = dense.iter().map(start).collect::<Result<_, _>>().map_err(failed)?;
        for work in works {
            work.wait().map_err(failed)?;
        }
        for (tensor, dense) in tensors.iter().zip(&dense) {
            if tensor.data_ptr() != dense.data_ptr() {
                tch::no_grad(|| tensor.detach().f_copy_(dense))?;
            }
        }
        Ok(())
    }

    fn failed(&self, what: &'static str, source: C10dError) -> GroupError {
        GroupError::Collective {
            what,
            rank: self.rank,
            ranks: self.ranks,
            source,
        }
    }
}

/// Listens on that address alone, or on all of the machine's where it is known outside by one that it has not itself.
fn listen(store: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(store).or_else(|error| match (error.kind(), store) {
        (ErrorKind::AddrNotAvailable, SocketAddr::V4(_)) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, store.port())),
        (ErrorKind::AddrNotAvailable, SocketAddr::V6(_)) => TcpListener::bind((Ipv6Addr::UNSPECIFIED, store.port())),
        _ => Err(error),
    })
}

/// The address of this machine that lies towards the store: there its peers reach it too. A host's own name often
/// resolves to a loopback address, and rank 0's may be known outside by an address that it has not itself.
fn own_address(store: SocketAddr) -> Result<IpAddr, GroupError> {
    let any: IpAddr = match store {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Nothing is sent: connecting a datagram socket only picks the route.
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(store)?;
        socket.local_addr()
    });
    Ok(local.map_err(|source| GroupError::Route { store, source })?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::testing::{LIMIT, free_port, together};

    #[test]
    fn all_ranks_get_the_sum_and_the_mean() {
        let results = together(3, |group| {
            let r = f64::from(group.rank());
            let wide = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)) * (r + 1.0);
            let mut tensors = [wide.tr(), Tensor::from_slice(&[r, 10.0 * r])];
            group.all_reduce(&mut tensors, Reduction::Sum).unwrap();
            let sums = tensors
                .each_ref()
                .map(|t| Vec::<f64>::try_from(t.flatten(0, -1)).unwrap());
            let number = Tensor::from_slice(&[r as f32]);
            let mut means = [number.to_kind(Kind::BFloat16), number];
            group.all_reduce(&mut means, Reduction::Mean).unwrap();
            assert_eq!(group.engine(), "gloo");
            (sums, means.map(|mean| mean.double_value(&[0])))
        });
        for (sums, means) in results {
            assert_eq!(sums, [vec![6.0; 6], vec![3.0, 30.0]]);
            assert_eq!(means, [1.0, 1.0]);
        }
    }

    #[test]
    fn a_broadcast_brings_the_tensors_of_its_root_whatever_their_layout() {
        let results = together(2, |group| {
            let start = if group.rank() == 1 { 1.0 } else { -100.0 };
            let values = Tensor::arange_start(start, start + 6.0, (Kind::Float, Device::Cpu)).reshape([2, 3]);
            let tensors = [values.tr().set_requires_grad(true), Tensor::from_slice(&[start as i64])];
            group.broadcast(&tensors, 1).unwrap();
            group.barrier().unwrap();
            (
                Vec::<f32>::try_from(tensors[0].detach().flatten(0, -1)).unwrap(),
                tensors[1].int64_value(&[0]),
            )
        });
        for (matrix, number) in results {
            assert_eq!(matrix, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
            assert_eq!(number, 1);
        }
    }

    #[test]
    fn a_group_of_one_is_a_group() {
        let results = together(1, |group| {
            let mut tensors = [Tensor::from_slice(&[4.0])];
            group.all_reduce(&mut tensors, Reduction::Mean).unwrap();
            tensors[0].double_value(&[0])
        });
        assert_eq!(results, [4.0]);
    }

    /// The second is reserved for documents: no machine has it, as rank 0 has not the one that a gateway lends it.
    #[test]
    fn ranks_are_reached_by_addresses_that_this_machine_has() {
        for store in ["127.0.0.1:80", "192.0.2.1:80"] {
            match own_address(store.parse().unwrap()) {
                Ok(own) => assert!(TcpListener::bind((own, 0)).is_ok(), "{own} towards {store}"),
                // Where no network leads out.
                Err(error) => assert!(store.starts_with("192"), "{error}"),
            }
        }
    }

    #[test]
    fn a_rank_that_nobody_joins_gives_up_in_time() {
        let (listener, store) = free_port();
        let gang = |rank, ranks| Gang {
            rank,
            ranks,
            store,
            generation: "alone".to_owned(),
        };
        let begun = std::time::Instant::now();
        let error = Group::join_listening(&gang(0, 2), listener, Device::Cpu, Duration::from_millis(700)).unwrap_err();
        assert!(matches!(error, GroupError::Join { rank: 0, ranks: 2, .. }), "{error}");
        // The store went with the group: now there is nobody to connect to.
        let error = Group::join(&gang(1, 2), Device::Cpu, Duration::from_millis(700)).unwrap_err();
        assert!(matches!(error, GroupError::Join { rank: 1, .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let error = Group::join(&gang(2, 2), Device::Cpu, LIMIT).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rank 2 of 2; ranks are numbered from 0 and there is at least one"
        );
    }
}
