//! libtorch's own c10d: collectives of a group of processes; and a call whenever a gradient is complete.

use std::ffi::{CStr, CString};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::os::raw::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::time::Duration;

use tch::{Device, Kind, Tensor};

mod raw {
    use std::os::raw::{c_char, c_int, c_void};

    unsafe extern "C" {
        pub(super) fn temponas_c10d_error() -> *const c_char;
        pub(super) fn temponas_group_join(joining: *const super::RawJoining) -> *mut c_void;
        pub(super) fn temponas_group_is_nccl(group: *const c_void) -> bool;
        pub(super) fn temponas_group_leave(group: *mut c_void);
        pub(super) fn temponas_group_all_reduce(group: *mut c_void, tensor: *const c_void) -> *mut c_void;
        pub(super) fn temponas_group_broadcast(group: *mut c_void, tensor: *const c_void, root: c_int) -> *mut c_void;
        pub(super) fn temponas_work_wait(work: *mut c_void) -> bool;
        pub(super) fn temponas_work_free(work: *mut c_void);
        pub(super) fn temponas_gradient_hook(
            variable: *const c_void,
            ready: extern "C" fn(*mut c_void),
            release: extern "C" fn(*mut c_void),
            data: *mut c_void,
        ) -> bool;
        pub(super) fn temponas_gradient_unhook(variable: *const c_void) -> bool;
        pub(super) fn temponas_like_gradient(variable: *const c_void) -> *mut c_void;
        pub(super) fn temponas_set_gradient(variable: *const c_void, gradient: *const c_void) -> bool;
    }
}

/// libtorch's words of why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct C10dError(String);

impl C10dError {
    /// Of this thread's last failed call.
    fn last() -> Self {
        // SAFETY: points to a string of this thread that lives until its next failed call; copied at once.
        let words = unsafe { CStr::from_ptr(raw::temponas_c10d_error()) };
        Self(words.to_string_lossy().trim().to_owned())
    }

    fn unless(succeeded: bool) -> Result<(), Self> {
        if succeeded { Ok(()) } else { Err(Self::last()) }
    }
}

/// How a process joins a group.
#[derive(Debug)]
pub struct Joining<'a> {
    /// Its number.
    pub rank: u32,
    /// Number of processes.
    pub ranks: u32,
    /// Where rank 0's store listens.
    pub store: SocketAddr,
    /// The socket of `store`: of rank 0 alone.
    pub listener: Option<TcpListener>,
    /// Start of all keys in the store.
    pub prefix: &'a str,
    /// The address of this machine by which its peers reach it.
    pub own_address: IpAddr,
    /// Where the tensors are.
    pub device: Device,
    /// Limit of joining and of each collective.
    pub timeout: Duration,
}

/// Laid out as in C++.
#[repr(C)]
struct RawJoining {
    store_host: *const c_char,
    prefix: *const c_char,
    own_address: *const c_char,
    timeout_ms: i64,
    store_port: c_int,
    listener: c_int,
    rank: c_int,
    ranks: c_int,
    cuda_device: c_int,
}

/// Membership of a group of processes; left when dropped.
#[derive(Debug)]
pub struct Collectives {
    /// Calls come one at a time: c10d numbers collectives in the order of its calls.
    group: Mutex<NonNull<c_void>>,
}

// SAFETY: the C++ object belongs to no thread, and the mutex keeps calls apart.
unsafe impl Send for Collectives {}
// SAFETY: as above.
unsafe impl Sync for Collectives {}

impl Collectives {
    /// Joins; blocks until all ranks have come, or for the timeout.
    pub fn join(joining: Joining<'_>) -> Result<Self, C10dError> {
        let text = |text: String| CString::new(text).map_err(|_| C10dError("a name holds a zero byte".to_owned()));
        let number = |number: u32| c_int::try_from(number).map_err(|_| C10dError(format!("{number} is too large")));
        let store_host = text(joining.store.ip().to_string())?;
        let prefix = text(joining.prefix.to_owned())?;
        let own_address = text(joining.own_address.to_string())?;
        let raw = RawJoining {
            store_host: store_host.as_ptr(),
            prefix: prefix.as_ptr(),
            own_address: own_address.as_ptr(),
            timeout_ms: i64::try_from(joining.timeout.as_millis()).unwrap_or(i64::MAX).max(1),
            store_port: joining.store.port().into(),
            rank: number(joining.rank)?,
            ranks: number(joining.ranks)?,
            cuda_device: match joining.device {
                Device::Cuda(index) => number(u32::try_from(index).unwrap_or(u32::MAX))?,
                _ => -1,
            },
            // The store takes the socket over and closes it.
            listener: joining.listener.map_or(-1, IntoRawFd::into_raw_fd),
        };
        // SAFETY: the strings live until the call returns; it keeps copies.
        let group = unsafe { raw::temponas_group_join(&raw const raw) };
        let group = NonNull::new(group).ok_or_else(C10dError::last)?;
        Ok(Self {
            group: Mutex::new(group),
        })
    }

    /// Whether NCCL carries the collectives; else Gloo does.
    pub fn is_nccl(&self) -> bool {
        // SAFETY: the group lives until `self` is dropped.
        self.with(|group| unsafe { raw::temponas_group_is_nccl(group) })
    }

    /// Starts to replace a contiguous tensor by its sum over all ranks, in place.
    pub fn start_sum(&self, tensor: &Tensor) -> Result<Work, C10dError> {
        // SAFETY: group and tensor are live; the work keeps its own reference to the tensor.
        Work::of(self.with(|group| unsafe { raw::temponas_group_all_reduce(group, pointer(tensor)) }))
    }

    /// Starts to replace a contiguous tensor by that of `root`, in place.
    pub fn start_broadcast(&self, tensor: &Tensor, root: u32) -> Result<Work, C10dError> {
        let root = c_int::try_from(root).map_err(|_| C10dError(format!("rank {root} is too large")))?;
        // SAFETY: as above.
        Work::of(self.with(|group| unsafe { raw::temponas_group_broadcast(group, pointer(tensor), root) }))
    }

    fn with<T>(&self, call: impl FnOnce(*mut c_void) -> T) -> T {
        let group = self.group.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        call(group.as_ptr())
    }
}

impl Drop for Collectives {
    fn drop(&mut self) {
        // SAFETY: the group came from `temponas_group_join` and is freed only here.
        self.with(|group| unsafe { raw::temponas_group_leave(group) });
    }
}

/// A collective under way.
#[derive(Debug)]
pub struct Work(NonNull<c_void>);

// SAFETY: c10d's work objects may be waited for from any thread.
unsafe impl Send for Work {}

impl Work {
    fn of(work: *mut c_void) -> Result<Self, C10dError> {
        NonNull::new(work).map(Self).ok_or_else(C10dError::last)
    }

    /// Blocks until the tensor holds the result.
    pub fn wait(self) -> Result<(), C10dError> {
        // SAFETY: the work lives until `self` is dropped.
        C10dError::unless(unsafe { raw::temponas_work_wait(self.0.as_ptr()) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the work came from a starting call and is freed only here; c10d keeps what still runs alive.
        unsafe { raw::temponas_work_free(self.0.as_ptr()) }
    }
}

type Ready = Box<dyn Fn() + Send + Sync>;

/// Watches a variable's gradient until it is dropped.
#[derive(Debug)]
pub struct GradientHook {
    variable: Tensor,
}

impl GradientHook {
    /// Calls `ready` whenever a backward pass has added to the gradient of a leaf, from the thread that did. A leaf has
    /// one such hook: a later one takes its place.
    pub fn new(variable: &Tensor, ready: impl Fn() + Send + Sync + 'static) -> Result<Self, C10dError> {
        let ready: Box<Ready> = Box::new(Box::new(ready));
        let data = Box::into_raw(ready).cast::<c_void>();
        // SAFETY: `data` is a `Box<Ready>`, which is what both functions take; `release_ready` runs once, also where the
        // call fails.
        let hooked = unsafe { raw::temponas_gradient_hook(pointer(variable), call_ready, release_ready, data) };
        C10dError::unless(hooked)?;
        Ok(Self {
            variable: variable.shallow_clone(),
        })
    }
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        // SAFETY: the variable is live.
        unsafe { raw::temponas_gradient_unhook(pointer(&self.variable)) };
    }
}

extern "C" fn call_ready(data: *mut c_void) {
    // SAFETY: `data` is the `Box<Ready>` of `GradientHook::new`, alive until `release_ready`; it may be called from
    // several threads, which `Sync` allows.
    let ready = unsafe { &*data.cast::<Ready>() };
    // A panic must not cross C++; the hook's message is printed by then, and what it left undone shows later.
    let _ = catch_unwind(AssertUnwindSafe(ready));
}

extern "C" fn release_ready(data: *mut c_void) {
    // SAFETY: `data` is the `Box<Ready>` of `GradientHook::new`, and C++ calls this once.
    drop(unsafe { Box::from_raw(data.cast::<Ready>()) });
}

/// The number format of a variable's gradients, which need not be its own.
pub fn gradient_kind(variable: &Tensor) -> Result<Kind, C10dError> {
    // SAFETY: the variable is live.
    let like = unsafe { raw::temponas_like_gradient(pointer(variable)) };
    let like = NonNull::new(like).ok_or_else(C10dError::last)?;
    // SAFETY: a fresh tensor of libtorch that nobody else frees.
    Ok(unsafe { Tensor::from_ptr(like.as_ptr().cast()) }.kind())
}

/// Makes `gradient` itself, not a copy, the gradient of a variable.
pub fn set_gradient(variable: &Tensor, gradient: &Tensor) -> Result<(), C10dError> {
    // SAFETY: both are live; C++ keeps its own reference to the gradient.
    C10dError::unless(unsafe { raw::temponas_set_gradient(pointer(variable), pointer(gradient)) })
}

/// A tensor as C++ sees it: what `tch` holds is a pointer to an `at::Tensor`.
fn pointer(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr().cast()
}
