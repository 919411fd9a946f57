//! Averages gradients over the ranks while the backward pass still runs.
//!
//! libtorch's own reducer (of DistributedDataParallel) is not used: to tell which parameters a step does not use it walks
//! the graph from the loss, which ends at a checkpointed section, whose graph does not exist yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::{Group, GroupError};
use crate::shim::c10d::{GradientHook, Work, gradient_kind, set_gradient};

/// Settings of a [`Reducer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReducerConfig {
    /// Gradients are sent in buckets of about this size: small ones begin early, large ones waste less on latency.
    pub bucket_bytes: usize,
    /// Whether buckets are sent as they fill; else all after the backward pass, for comparison.
    pub overlap: bool,
}

impl Default for ReducerConfig {
    fn default() -> Self {
        Self {
            bucket_bytes: 8 << 20,
            overlap: true,
        }
    }
}

/// How far the reduction of one step ran beside its backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Number of buckets.
    pub buckets: usize,
    /// Buckets whose reduction began within the backward pass.
    pub begun_in_backward: usize,
    /// From the beginning of the first bucket's reduction to the end of the backward pass.
    pub lead: Duration,
    /// From the end of the backward pass to the end of the last reduction.
    pub waited: Duration,
}

/// Averages the gradients of a fixed list of parameters over the ranks of a group.
///
/// A step is [`Self::begin`], a backward pass, [`Self::finish`]. Gradients lie in flat buckets, in the reverse order of
/// the parameters; a hook on each tells that it is complete, and a bucket whose gradients all are is sent at once, on
/// c10d's own threads. Buckets go out in the same order on all ranks, whatever order their gradients come in.
///
/// Each bucket ends with one number a parameter: on how many ranks it has a gradient. So a parameter that no rank used
/// keeps none, as in one process, and one that some ranks used counts as zero on the others.
#[derive(Debug)]
pub struct Reducer {
    shared: Arc<Shared>,
    /// Dropped with the reducer: the variables forget it.
    _hooks: Vec<GradientHook>,
}

#[derive(Debug)]
struct Shared {
    group: Group,
    overlap: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    buckets: Vec<Bucket>,
    /// The first bucket that has not been sent.
    next: usize,
    failure: Option<GroupError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Gradients stay on this rank.
    Local,
    /// Gradients are sent as they become complete.
    Synchronised,
}

#[derive(Debug)]
struct Bucket {
    /// All gradients one after another, then the number of ranks that have each: `[elements + slots]`.
    flat: Tensor,
    slots: Vec<Slot>,
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    variable: Tensor,
    /// Its gradient's place in the bucket, in the shape of the variable.
    place: Tensor,
    complete: bool,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    work: Option<Work>,
}

impl Reducer {
    /// Over named parameters in the order in which a forward pass uses them, roughly: gradients come in the reverse.
    /// All ranks give the same list.
    ///
    /// # Errors
    /// Where a parameter is no leaf that requires a gradient.
    pub fn new(group: &Group, parameters: &[(String, Tensor)], config: ReducerConfig) -> Result<Self, GroupError> {
        let buckets = fill_buckets(parameters, config.bucket_bytes)?;
        let addresses: Vec<(usize, usize)> = buckets
            .iter()
            .enumerate()
            .flat_map(|(b, bucket)| (0..bucket.slots.len()).map(move |s| (b, s)))
            .collect();
        let shared = Arc::new(Shared {
            group: group.clone(),
            overlap: config.overlap,
            state: Mutex::new(State {
                phase: Phase::Local,
                buckets,
                next: 0,
                failure: None,
            }),
        });
        let hook = |(bucket, slot): (usize, usize)| {
            let (name, variable) = {
                let slot = &shared.state().buckets[bucket].slots[slot];
                (slot.name.clone(), slot.variable.shallow_clone())
            };
            // Weak: the variable holds the hook, and the reducer the variable.
            let shared = Arc::downgrade(&shared);
            let complete = move || {
                Weak::upgrade(&shared)
                    .into_iter()
                    .for_each(|s| s.complete(bucket, slot))
            };
            GradientHook::new(&variable, complete).map_err(|source| GroupError::Weight { name, source })
        };
        let hooks = addresses.into_iter().map(hook).collect::<Result<_, _>>()?;
        Ok(Self { shared, _hooks: hooks })
    }

    /// Before a backward pass: with `synchronise` its gradients are sent, with what earlier passes of the same step
    /// have left in them; else they only add up here.
    pub fn begin(&mut self, synchronise: bool) {
        let mut state = self.shared.state();
        state.forget_step();
        if synchronise {
            state.phase = Phase::Synchronised;
        }
    }

    /// After the backward pass: sends what is left, waits, and makes the means over the ranks the parameters'
    /// gradients. After `begin(false)` it does nothing.
    ///
    /// # Errors
    /// Where a peer is lost, or a gradient grew after it had been sent. The gradients are of no use then.
    pub fn finish(&mut self) -> Result<Overlap, GroupError> {
        let ended = Instant::now();
        let mut state = self.shared.state();
        if state.phase == Phase::Local {
            return Ok(Overlap::default());
        }
        state.phase = Phase::Local;
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let begun_in_backward = state.next;
        while state.next < state.buckets.len() {
            state.send_next(&self.shared.group)?;
        }
        let first = state.buckets.first().and_then(|bucket| Some(bucket.sent.as_ref()?.at));
        for bucket in &mut state.buckets {
            bucket.receive(&self.shared.group)?;
        }
        Ok(Overlap {
            buckets: state.buckets.len(),
            begun_in_backward,
            lead: first.map_or(Duration::ZERO, |first| ended.saturating_duration_since(first)),
            waited: ended.elapsed(),
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gradient has been added to; runs within the backward pass, on whichever thread that is.
    fn complete(&self, bucket: usize, slot: usize) {
        let mut state = self.state();
        if state.phase == Phase::Local || state.failure.is_some() {
            return;
        }
        let bucket = &mut state.buckets[bucket];
        if bucket.sent.is_some() {
            state.failure = Some(GroupError::Grew(bucket.slots[slot].name.clone()));
            return;
        }
        bucket.slots[slot].complete = true;
        while self.overlap && state.buckets.get(state.next).is_some_and(Bucket::is_complete) {
            // An error must not go up through the backward pass: `finish` tells it.
            if let Err(failure) = state.send_next(&self.group) {
                state.failure = Some(failure);
                return;
            }
        }
    }
}

impl State {
    fn send_next(&mut self, group: &Group) -> Result<(), GroupError> {
        self.buckets[self.next].send(group)?;
        self.next += 1;
        Ok(())
    }

    fn forget_step(&mut self) {
        for bucket in &mut self.buckets {
            // Left over only where a backward pass failed between: nobody may write to a bucket under way.
            if let Some(work) = bucket.sent.take().and_then(|sent| sent.work) {
                let _ = work.wait();
            }
            for slot in &mut bucket.slots {
                slot.complete = false;
            }
        }
        (self.phase, self.next, self.failure) = (Phase::Local, 0, None);
    }
}

impl Bucket {
    fn new(parameters: &[&(String, Tensor)], format: (Kind, Device)) -> Result<Self, GroupError> {
        let elements: i64 = parameters.iter().map(|(_, variable)| variable.numel() as i64).sum();
        let flat = Tensor::f_zeros([elements + parameters.len() as i64], format)?;
        let mut start = 0;
        let mut slots = Vec::with_capacity(parameters.len());
        for (name, variable) in parameters {
            let length = variable.numel() as i64;
            let place = flat.f_narrow(0, start, length)?.f_view(variable.size().as_slice())?;
            start += length;
            slots.push(Slot {
                name: name.clone(),
                variable: variable.shallow_clone(),
                // Detached: an optimizer may `detach_` a gradient, which a view forbids.
                place: place.f_detach()?,
                complete: false,
            });
        }
        Ok(Self {
            flat,
            slots,
            sent: None,
        })
    }

    fn is_complete(&self) -> bool {
        self.slots.iter().all(|slot| slot.complete)
    }

    /// `[slots]`: on how many ranks each parameter has a gradient.
    fn counts(&self) -> Result<Tensor, GroupError> {
        let slots = self.slots.len() as i64;
        Ok(self.flat.f_narrow(0, self.flat.size()[0] - slots, slots)?)
    }

    fn send(&mut self, group: &Group) -> Result<(), GroupError> {
        let mut counts = Vec::with_capacity(self.slots.len());
        tch::no_grad(|| {
            for slot in &mut self.slots {
                let gradient = slot.variable.f_grad()?;
                counts.push(f32::from(u8::from(gradient.defined())));
                if !gradient.defined() {
                    let _ = slot.place.f_zero_()?;
                } else if gradient.data_ptr() != slot.place.data_ptr() {
                    slot.place.f_copy_(&gradient)?;
                }
            }
            self.counts()?.f_copy_(&Tensor::from_slice(&counts))?;
            Ok::<_, GroupError>(())
        })?;
        self.sent = Some(Sent {
            at: Instant::now(),
            work: Some(group.start_sum(&self.flat)?),
        });
        Ok(())
    }

    fn receive(&mut self, group: &Group) -> Result<(), GroupError> {
        if let Some(work) = self.sent.as_mut().and_then(|sent| sent.work.take()) {
            group.wait(work)?;
        }
        let counts = Vec::<f32>::try_from(self.counts()?.to_kind(Kind::Float))?;
        let _ = tch::no_grad(|| self.flat.f_div_scalar_(f64::from(group.ranks())))?;
        for (slot, count) in self.slots.iter().zip(counts) {
            if count > 0.0 {
                // The bucket's memory itself: the next step adds up in it, and nothing is copied.
                set_gradient(&slot.variable, &slot.place).map_err(|source| GroupError::Weight {
                    name: slot.name.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// Buckets of about `bytes` each in the reverse order of the parameters, one number format and device to a bucket.
fn fill_buckets(parameters: &[(String, Tensor)], bytes: usize) -> Result<Vec<Bucket>, GroupError> {
    let mut buckets = Vec::new();
    let mut open: Vec<&(String, Tensor)> = Vec::new();
    let mut of_open = None;
    let mut filled = 0;
    for parameter in parameters.iter().rev() {
        let (name, variable) = parameter;
        let kind = gradient_kind(variable).map_err(|source| GroupError::Weight {
            name: name.clone(),
            source,
        })?;
        let format = (kind, variable.device());
        let size = variable.numel() * kind.elt_size_in_bytes();
        if let Some(of_open) = of_open
            && (of_open != format || filled + size > bytes)
        {
            buckets.push(Bucket::new(&open, of_open)?);
            open.clear();
            filled = 0;
        }
        open.push(parameter);
        of_open = Some(format);
        filled += size;
    }
    if let Some(of_open) = of_open {
        buckets.push(Bucket::new(&open, of_open)?);
    }
    Ok(buckets)
}

#[cfg(test)]
mod tests;
