//! The one place with unsafe code: a small C++ file over libtorch's own headers for what `tch` does not bind.
//!
//! - Peak memory: c10 reports every block that its allocators hand out and take back, on the processor and on CUDA
//!   alike. A tracker on the measuring thread adds them up, so a figure is bytes of the allocator, not process size.
//! - Multiply-accumulates: libtorch shows every operator with its tensors to observers.
//! - Gradient checkpointing: see [`recomputed`].
//! - CUDA: one binary serves machines with and without; the CUDA half of libtorch is loaded at start where it is found.
#![expect(unsafe_code, reason = "calls into the C++ shim")]

mod autograd;

use std::marker::PhantomData;
use std::os::raw::c_void;

use tch::Device;

pub use autograd::{keep_gradient_as_float, recomputed};

mod raw {
    use std::os::raw::{c_int, c_void};

    unsafe extern "C" {
        pub(super) fn temponas_memory_begin(device_type: c_int, budget: i64) -> *mut c_void;
        pub(super) fn temponas_memory_mark(scope: *mut c_void) -> i64;
        pub(super) fn temponas_memory_current(scope: *mut c_void) -> i64;
        pub(super) fn temponas_memory_peak(scope: *mut c_void) -> i64;
        pub(super) fn temponas_memory_end(scope: *mut c_void);
        pub(super) fn temponas_macs_begin() -> u64;
        pub(super) fn temponas_macs_end(handle: u64) -> i64;
        pub(super) fn temponas_cuda_memory(index: c_int, free: *mut u64, total: *mut u64) -> bool;
        pub(super) fn temponas_thread_seconds() -> f64;
        pub(super) fn temponas_load_cuda() -> bool;
    }
}

/// Highest number of allocator bytes in use at one moment. Peaks do not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeakBytes(pub u64);

/// Watches this thread's allocations on one device until it is dropped.
///
/// Blocks that were allocated before it began do not count, neither do their ends.
#[derive(Debug)]
pub struct MemoryTracker {
    scope: *mut c_void,
    /// The scope belongs to the thread that opened it.
    thread: PhantomData<*const ()>,
}

impl MemoryTracker {
    /// Begins to watch. With a `budget` an allocation that would take the watched bytes above it fails as out of memory.
    pub fn begin(device: Device, budget: Option<u64>) -> Self {
        // c10::DeviceType: CPU is 0, CUDA 1.
        let device_type = if device.is_cuda() { 1 } else { 0 };
        let budget = budget.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX).max(1));
        // SAFETY: takes plain numbers; the returned scope is owned by `self` and freed once, in `drop`.
        let scope = unsafe { raw::temponas_memory_begin(device_type, budget) };
        Self {
            scope,
            thread: PhantomData,
        }
    }

    /// Bytes in use of what was allocated since the tracker began.
    pub fn in_use(&self) -> u64 {
        // SAFETY: `scope` is live until `drop`, and `self` cannot leave its thread.
        let current = unsafe { raw::temponas_memory_current(self.scope) };
        u64::try_from(current).unwrap_or(0)
    }

    /// Runs `f` and returns the peak of its allocations above what was in use when it began, with its result.
    ///
    /// What `f` frees and was allocated since the tracker began lowers the count.
    pub fn peak_of<T>(&self, f: impl FnOnce() -> T) -> (T, PeakBytes) {
        // SAFETY: `scope` is live until `drop`, and `self` cannot leave its thread.
        let start = unsafe { raw::temponas_memory_mark(self.scope) };
        let result = f();
        // SAFETY: as above.
        let peak = unsafe { raw::temponas_memory_peak(self.scope) };
        (result, PeakBytes(u64::try_from(peak - start).unwrap_or(0)))
    }
}

impl Drop for MemoryTracker {
    fn drop(&mut self) {
        // SAFETY: `scope` came from `temponas_memory_begin` and is freed only here.
        unsafe { raw::temponas_memory_end(self.scope) }
    }
}

/// Peak of what `f` allocates on `device`, above what was allocated when it began.
pub fn measure_peak<T>(device: Device, f: impl FnOnce() -> T) -> (T, PeakBytes) {
    MemoryTracker::begin(device, None).peak_of(f)
}

/// Multiply-accumulates of the linear layers, convolutions and attentions that `f` runs on this thread, from the
/// tensors libtorch saw.
pub fn count_macs<T>(f: impl FnOnce() -> T) -> (T, u64) {
    // SAFETY: registers an observer of this thread; the handle is given back below, before anything else can run here.
    let handle = unsafe { raw::temponas_macs_begin() };
    let result = f();
    // SAFETY: `handle` is the one from above.
    let macs = unsafe { raw::temponas_macs_end(handle) };
    (result, u64::try_from(macs).unwrap_or(0))
}

/// Free and total bytes of a CUDA device; `None` where it cannot tell.
pub fn cuda_memory(index: usize) -> Option<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes to the two locals only.
    let known = unsafe { raw::temponas_cuda_memory(i32::try_from(index).ok()?, &raw mut free, &raw mut total) };
    known.then_some((free, total))
}

/// Seconds for which this thread has held a core.
pub fn thread_seconds() -> f64 {
    // SAFETY: reads a clock.
    unsafe { raw::temponas_thread_seconds() }
}

/// Loads the CUDA half of libtorch where the host has it; whether it did. Call before libtorch is first used.
pub fn load_cuda() -> bool {
    // SAFETY: loading a library runs its initialisers, which libtorch expects.
    unsafe { raw::temponas_load_cuda() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn the_peak_is_the_bytes_alive_at_once() {
        let ((), peak) = measure_peak(Device::Cpu, || {
            let first = Tensor::zeros([1000], CPU);
            drop(first);
            let _a = Tensor::zeros([300], CPU);
            let _b = Tensor::zeros([500], CPU);
        });
        assert_eq!(peak, PeakBytes(4 * 1000));
        let ((), peak) = measure_peak(Device::Cpu, || {
            let _a = Tensor::zeros([600], CPU);
            let _b = Tensor::zeros([500], CPU);
        });
        assert_eq!(peak, PeakBytes(4 * 1100));
    }

    #[test]
    fn blocks_from_before_do_not_count_when_they_end() {
        let before = Tensor::zeros([10_000], CPU);
        let ((), peak) = measure_peak(Device::Cpu, || {
            drop(before);
            let _after = Tensor::zeros([100], CPU);
        });
        assert_eq!(peak, PeakBytes(400));
    }

    #[test]
    fn what_ends_inside_makes_room() {
        let tracker = MemoryTracker::begin(Device::Cpu, None);
        let input = Tensor::zeros([1000], CPU);
        let (_result, peak) = tracker.peak_of(|| {
            drop(input);
            Tensor::zeros([1200], CPU)
        });
        assert_eq!(peak, PeakBytes(4 * 200));
    }

    #[test]
    fn an_allocation_above_the_budget_is_out_of_memory_and_the_next_one_is_not() {
        let tracker = MemoryTracker::begin(Device::Cpu, Some(4000));
        let error = Tensor::f_zeros([1001], CPU).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("out of memory: 4004 bytes needed, 4000 allowed"),
            "{error}"
        );
        assert!(Tensor::f_zeros([1000], CPU).is_ok());
        drop(tracker);
        assert!(Tensor::f_zeros([1001], CPU).is_ok());
    }

    #[test]
    fn other_threads_do_not_disturb_the_count() {
        let ((), peak) = measure_peak(Device::Cpu, || {
            let _mine = Tensor::zeros([100], CPU);
            std::thread::spawn(|| drop(Tensor::zeros([100_000], CPU)))
                .join()
                .unwrap();
        });
        assert_eq!(peak, PeakBytes(400));
    }

    #[test]
    fn products_are_counted_once_each() {
        let x = Tensor::zeros([2, 3, 8, 8], CPU);
        let (_, macs) = count_macs(|| x.conv2d::<Tensor>(&Tensor::zeros([5, 3, 3, 3], CPU), None, 1, 1, 1, 1));
        assert_eq!(macs, 2 * 5 * 64 * 27);
        let (_, macs) =
            count_macs(|| Tensor::zeros([4, 6, 7], CPU).linear::<Tensor>(&Tensor::zeros([9, 7], CPU), None));
        assert_eq!(macs, 4 * 6 * 7 * 9);
        let q = Tensor::zeros([2, 4, 10, 16], CPU);
        let k = Tensor::zeros([2, 4, 12, 16], CPU);
        let attend = || Tensor::scaled_dot_product_attention(&q, &k, &k, None::<Tensor>, 0.0, false, None, false);
        assert_eq!(count_macs(attend).1, 2 * 2 * 4 * 10 * 12 * 16);
        assert_eq!(count_macs(|| &q + 1.0).1, 0);
    }
}
