//! Groups whose ranks are threads of one process.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tch::Device;

use super::{Gang, Group};

pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn free_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// What `f` returns at each rank of a group.
pub(crate) fn together<T: Send>(ranks: u32, f: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let (listener, store) = free_port();
    let mut listener = Some(listener);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let (listener, f) = (listener.take(), &f);
                let gang = Gang {
                    rank,
                    ranks,
                    store,
                    generation: "test".to_owned(),
                };
                scope.spawn(move || f(Group::join_with(&gang, listener, Device::Cpu, LIMIT).unwrap()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
