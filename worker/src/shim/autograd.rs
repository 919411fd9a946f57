//! Gradient checkpointing (Chen et al. 2016): a segment of a model keeps its inputs alone and runs again when the
//! backward pass needs what was inside.
#![expect(unsafe_code, reason = "calls into the C++ shim")]

use std::any::Any;
use std::os::raw::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

/// Room for the message of a failure, with its closing zero.
const MESSAGE: usize = 1024;

/// What a segment does: tensors in, one tensor out.
type Run = Box<dyn Fn(&[Tensor]) -> Tensor + Send + Sync>;

type RunCallback = unsafe extern "C" fn(
    closure: *mut c_void,
    inputs: *const *const c_void,
    count: usize,
    output: *mut *mut c_void,
    message: *mut c_char,
    room: usize,
) -> c_int;

unsafe extern "C" {
    fn temponas_recomputed(
        inputs: *const *const c_void,
        count: usize,
        closure: *mut c_void,
        run: RunCallback,
        drop: unsafe extern "C" fn(*mut c_void),
        message: *mut c_char,
        room: usize,
    ) -> *mut c_void;
    fn temponas_keep_gradient_as_float(leaf: *const c_void) -> bool;
}

/// `segment(inputs)`, with nothing kept for the backward pass but the inputs: it runs the segment again. The gradients
/// of the inputs and of the trained weights inside are those that they would be without. (Where a tensor is read by
/// several segments, the sum of its gradients is taken in another order.)
///
/// A segment must not draw random numbers. Where nothing is differentiated anyway it simply runs.
///
/// # Panics
/// As the segment does; a failure of the second run surfaces as an error of the backward pass.
pub fn recomputed(inputs: &[&Tensor], segment: impl Fn(&[Tensor]) -> Tensor + Send + Sync + 'static) -> Tensor {
    let pointers: Vec<*const c_void> = inputs.iter().map(|input| input.as_ptr().cast()).collect();
    let closure: *mut Run = Box::into_raw(Box::new(Box::new(segment)));
    let mut message: [c_char; MESSAGE] = [0; MESSAGE];
    // SAFETY: `pointers` are live tensors for the time of the call; the shim owns `closure` from here on and gives it to
    // `forget_segment` once; it calls `run_segment` with that closure only while it owns it, and writes no more than
    // `MESSAGE - 1` bytes of the zeroed message.
    let output = unsafe {
        temponas_recomputed(
            pointers.as_ptr(),
            pointers.len(),
            closure.cast(),
            run_segment,
            forget_segment,
            message.as_mut_ptr(),
            MESSAGE,
        )
    };
    assert!(!output.is_null(), "{}", text_of(&message));
    // SAFETY: a fresh tensor of libtorch that nobody else frees.
    unsafe { Tensor::from_ptr(output.cast()) }
}

/// Lets the gradients of a leaf be kept, and added up, in float32 though the leaf itself is in a smaller format;
/// whether libtorch agreed.
#[must_use]
pub fn keep_gradient_as_float(leaf: &Tensor) -> bool {
    // SAFETY: a live tensor; only its autograd settings change.
    unsafe { temponas_keep_gradient_as_float(leaf.as_ptr().cast()) }
}

/// Called by the shim, on whichever thread the backward pass runs.
unsafe extern "C" fn run_segment(
    closure: *mut c_void,
    inputs: *const *const c_void,
    count: usize,
    output: *mut *mut c_void,
    message: *mut c_char,
    room: usize,
) -> c_int {
    // SAFETY: the closure that `recomputed` boxed; it is `Sync`, and the shim drops it only after its last call.
    let segment: &Run = unsafe { &*closure.cast::<Run>() };
    let run = AssertUnwindSafe(|| {
        let owned: Vec<Tensor> = (0..count)
            // SAFETY: the shim passes `count` live tensors; the clone has a count of its own.
            .map(|i| unsafe { Tensor::clone_from_ptr((*inputs.add(i)).cast_mut().cast()) })
            .collect();
        segment(&owned)
    });
    // A panic must not unwind through C++.
    match catch_unwind(run) {
        Ok(mut result) => {
            // SAFETY: `output` points to one pointer. The tensor is handed over: it is not dropped here.
            unsafe { *output = result.as_mut_ptr().cast() };
            std::mem::forget(result);
            0
        }
        Err(panic) => {
            let text = message_of(&*panic);
            let bytes = &text.as_bytes()[..text.len().min(room.saturating_sub(1))];
            // SAFETY: the shim's buffer has `room` zeroed bytes, of which the last stays zero.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), message, bytes.len()) };
            1
        }
    }
}

/// Called by the shim once, when the last graph that holds the segment is gone.
unsafe extern "C" fn forget_segment(closure: *mut c_void) {
    // SAFETY: what `recomputed` leaked with `Box::into_raw`, given back once.
    let owned = AssertUnwindSafe(|| drop(unsafe { Box::from_raw(closure.cast::<Run>()) }));
    // A tensor that fails to end is no reason to unwind into C++.
    let _ = catch_unwind(owned);
}

/// The words of a panic, which is how errors of libtorch surface in models.
fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a segment failed without a message").to_owned()
}

fn text_of(message: &[c_char; MESSAGE]) -> String {
    let bytes: Vec<u8> = message.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::normal;
    use crate::shim::measure_peak;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use tch::{Device, Kind};

    fn leaf(shape: &[i64], seed: u64) -> Tensor {
        normal(shape, seed, Device::Cpu).set_requires_grad(true)
    }

    /// Weights that a segment holds on to, as a model's blocks are held.
    fn held(weight: &Tensor) -> Arc<Mutex<Tensor>> {
        Arc::new(Mutex::new(weight.shallow_clone()))
    }

    #[test]
    fn gradients_of_inputs_and_of_weights_inside_are_the_same() {
        let gradients = |recompute: bool| {
            let (x, weight) = (leaf(&[5, 4], 1), leaf(&[4, 3], 2));
            let (hidden, inner) = (&x * 2.0, held(&weight));
            let segment = move |inputs: &[Tensor]| inputs[0].matmul(&inner.lock().unwrap()).tanh() * &inputs[1];
            let scale = normal(&[3], 3, Device::Cpu);
            let out = if recompute {
                recomputed(&[&hidden, &scale], segment)
            } else {
                segment(&[hidden, scale])
            };
            out.square().sum(Kind::Float).backward();
            (out.detach(), x.grad(), weight.grad())
        };
        assert_eq!(gradients(true), gradients(false));
    }

    #[test]
    fn weights_inside_are_trained_though_no_input_is() {
        let (x, weight) = (normal(&[5, 4], 1, Device::Cpu), leaf(&[4, 3], 2));
        let inner = held(&weight);
        let out = recomputed(&[&x], move |inputs| inputs[0].matmul(&inner.lock().unwrap()));
        out.sum(Kind::Float).backward();
        let expected = x.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).unsqueeze(1);
        assert!(
            weight
                .grad()
                .allclose(&expected.expand([4, 3], false), 1e-6, 1e-6, false)
        );
    }

    #[test]
    fn where_nothing_is_trained_nothing_runs_twice() {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = |x: &Tensor| {
            let runs = runs.clone();
            recomputed(&[x], move |inputs| {
                runs.fetch_add(1, Ordering::SeqCst);
                inputs[0].exp()
            })
        };
        let plain = count(&normal(&[3], 1, Device::Cpu));
        assert!(!plain.requires_grad());
        let trained = leaf(&[3], 1);
        assert!(!tch::no_grad(|| count(&trained)).requires_grad());
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        count(&trained).sum(Kind::Float).backward();
        assert_eq!(runs.load(Ordering::SeqCst), 4, "once forward, once backward");
    }

    #[test]
    fn a_chain_of_segments_keeps_less() {
        let peak = |recompute: bool| {
            let x = leaf(&[64, 64], 1);
            let (_, peak) = measure_peak(Device::Cpu, || {
                let step = |inputs: &[Tensor]| (0..8).fold(inputs[0].shallow_clone(), |x, _| x.tanh() * 1.01);
                let out = (0..6).fold(
                    &x * 1.0,
                    |h, _| {
                        if recompute { recomputed(&[&h], step) } else { step(&[h]) }
                    },
                );
                out.sum(Kind::Float).backward();
            });
            peak.0
        };
        let (with, without) = (peak(true), peak(false));
        assert!(2 * with < without, "{with} against {without} bytes");
    }

    #[test]
    fn failures_come_back_as_failures() {
        let x = leaf(&[3], 1);
        let forward = catch_unwind(AssertUnwindSafe(|| recomputed(&[&x], |_| panic!("no such segment"))));
        assert_eq!(message_of(&*forward.unwrap_err()), "no such segment");

        let wrong_shape = |inputs: &[Tensor]| inputs[0].matmul(&Tensor::zeros([7, 7], (Kind::Float, Device::Cpu)));
        let forward = catch_unwind(AssertUnwindSafe(|| recomputed(&[&x], wrong_shape)));
        assert!(message_of(&*forward.unwrap_err()).contains("cannot be multiplied"));

        let runs = AtomicUsize::new(0);
        let second = recomputed(&[&x], move |inputs| {
            assert!(runs.fetch_add(1, Ordering::SeqCst) == 0, "not twice");
            inputs[0].exp()
        });
        let error = second.sum(Kind::Float).f_backward().unwrap_err();
        assert!(error.to_string().contains("not twice"), "{error}");
        // And libtorch goes on as before.
        (&x * 2.0).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [2.0; 3]);
    }

    #[test]
    fn a_small_leaf_adds_its_gradients_up_in_float32() {
        let weight = Tensor::ones([1], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
        assert!(keep_gradient_as_float(&weight));
        // 256 + 1 is 256 in bfloat16.
        (&weight * 256.0).sum(Kind::BFloat16).backward();
        (&weight * 1.0).sum(Kind::BFloat16).backward();
        assert_eq!(weight.grad().kind(), Kind::Float);
        assert_eq!(weight.grad().double_value(&[0]), 257.0);
    }
}
