//! The order of a pass.

use tch::{Tensor, nn::Module};

use super::super::blocks::Layer;
use super::super::chain::Chain;
use super::super::segment::{Activations, Segment};
use super::super::temporal::{Clip, TemporalStack};
use super::{Moment, UNet, conv_in};

impl UNet {
    /// As [`UNet::observed`]; `between` sees the running tensor and the skip tensors that are still to be used between
    /// any two blocks, by a count of these places.
    pub(super) fn walk(
        &self,
        xs: &Tensor,
        time: Moment<'_>,
        text: &Tensor,
        activations: Activations,
        observe: &mut dyn FnMut(usize, &Tensor),
        between: &mut dyn FnMut(usize, &Tensor, &[Tensor]),
    ) -> Tensor {
        let pass = self.prepared(xs, time, text, activations);
        let mut watch = Watch::new(observe, between);
        let (mut hidden, mut skips) = self.way_down(&pass, xs, &mut watch);
        if let Some(mid) = &self.mid {
            let (time, text) = pass.beside();
            hidden = mid.run(activations, [hidden, time, text], |mid, [xs, time, text]| {
                mid.forward(&xs, &time, &text)
            });
            watch.passed(&hidden, &skips);
            if let Some(stack) = &self.mid_temporal {
                hidden = pass.temporal(stack, hidden);
                watch.passed(&hidden, &skips);
            }
            watch.reached(&hidden);
        }
        for level in &self.up {
            for layer in &level.layers {
                let skip = skips.pop().expect("every up layer has a skip tensor");
                let (time, text) = pass.beside();
                hidden = layer.run(
                    activations,
                    [hidden, skip, time, text],
                    |layer, [xs, skip, time, text]| layer.forward_with_skip(xs, skip, &time, &text),
                );
                watch.passed(&hidden, &skips);
            }
            if let Some(stack) = &level.temporal {
                hidden = pass.temporal(stack, hidden);
                watch.passed(&hidden, &skips);
            }
            watch.reached(&hidden);
            if let (Some(upsample), Some(next)) = (&level.upsample, skips.last()) {
                let (_, _, h, w) = next.size4().expect("skip tensors are [b*t, c, h, w]");
                hidden = upsample.forward(&hidden, [h, w]);
                watch.passed(&hidden, &skips);
            }
        }
        let velocity = hidden
            .through(&self.head)
            .unflatten(0, [-1, pass.frames])
            .transpose(1, 2);
        velocity.to_kind(xs.kind()) // [b, latent_channels, t, h, w]
    }

    /// The way down alone; the rest is given up.
    #[must_use]
    pub fn into_encoder(mut self) -> Encoder {
        (self.mid, self.mid_temporal) = (None, None);
        self.up.clear();
        Encoder(self)
    }

    /// What the blocks of a pass go by, in the number format of the weights.
    fn prepared(&self, xs: &Tensor, time: Moment<'_>, text: &Tensor, activations: Activations) -> Pass {
        let (_, _, frames, _, _) = xs.size5().expect("a UNet takes [b, c, t, h, w]");
        let kind = self.conv_in.ws.kind();
        Pass {
            time: match time {
                Moment::Time(time) => self.embed(time),
                Moment::Embedded(embedding) => embedding.to_kind(kind),
            },
            text: text.to_kind(kind),
            frames,
            activations,
        }
    }

    /// To the end of the innermost level: what came out, and the skip tensors.
    fn way_down(&self, pass: &Pass, xs: &Tensor, watch: &mut Watch<'_>) -> (Tensor, Vec<Tensor>) {
        let mut hidden = conv_in(&self.conv_in, &xs.to_kind(self.conv_in.ws.kind()));
        let mut skips = vec![hidden.shallow_clone()];
        watch.passed(&hidden, &skips);
        for level in &self.down {
            for (i, layer) in level.layers.iter().enumerate() {
                hidden = pass.layer(layer, &hidden);
                if let Some(stack) = &level.temporal
                    && i + 1 == level.layers.len()
                {
                    watch.passed(&hidden, &skips);
                    hidden = pass.temporal(stack, hidden);
                }
                skips.push(hidden.shallow_clone());
                watch.passed(&hidden, &skips);
            }
            watch.reached(&hidden);
            if let Some(downsample) = &level.downsample {
                hidden = downsample.forward(&hidden);
                skips.push(hidden.shallow_clone());
                watch.passed(&hidden, &skips);
            }
        }
        (hidden, skips)
    }
}

/// Who looks on while a pass goes its way.
struct Watch<'a> {
    position: usize,
    place: usize,
    observe: &'a mut dyn FnMut(usize, &Tensor),
    between: &'a mut dyn FnMut(usize, &Tensor, &[Tensor]),
}

impl<'a> Watch<'a> {
    fn new(observe: &'a mut dyn FnMut(usize, &Tensor), between: &'a mut dyn FnMut(usize, &Tensor, &[Tensor])) -> Self {
        Self {
            position: 0,
            place: 0,
            observe,
            between,
        }
    }

    /// The end of a position.
    fn reached(&mut self, hidden: &Tensor) {
        (self.observe)(self.position, hidden);
        self.position += 1;
    }

    /// The end of a block.
    fn passed(&mut self, hidden: &Tensor, skips: &[Tensor]) {
        (self.between)(self.place, hidden, skips);
        self.place += 1;
    }
}

/// What the blocks of a pass go by, beside its clip.
struct Pass {
    time: Tensor,
    text: Tensor,
    frames: i64,
    activations: Activations,
}

impl Pass {
    fn beside(&self) -> (Tensor, Tensor) {
        (self.time.shallow_clone(), self.text.shallow_clone())
    }

    fn layer(&self, layer: &Segment<Layer>, xs: &Tensor) -> Tensor {
        let (time, text) = self.beside();
        layer.run(
            self.activations,
            [xs.shallow_clone(), time, text],
            |layer, [xs, time, text]| layer.forward(&xs, &time, &text),
        )
    }

    fn temporal(&self, stack: &Segment<TemporalStack>, xs: Tensor) -> Tensor {
        let frames = self.frames;
        stack.run(
            self.activations,
            [xs, self.text.shallow_clone()],
            move |stack, [xs, text]| stack.forward(xs, Clip { frames, text: &text }),
        )
    }
}

/// The way down of a UNet: what a discriminator sees with.
#[derive(Debug)]
pub struct Encoder(UNet);

/// What an [`Encoder`] makes of clips.
#[derive(Debug)]
pub struct Features {
    /// Each level's output, after its temporal layers: `[batch · frames, channels, h, w]`, the finest first.
    pub levels: Vec<Tensor>,
    /// The embedding of the times: `[batch, time_width]`.
    pub time: Tensor,
    /// Frames of a clip.
    pub frames: i64,
}

impl Encoder {
    /// One pass, as [`UNet::pass`] up to the middle.
    pub fn forward(&self, xs: &Tensor, time: &Tensor, text: &Tensor, activations: Activations) -> Features {
        let pass = self.0.prepared(xs, Moment::Time(time), text, activations);
        let mut levels = Vec::new();
        let mut keep = |_: usize, level: &Tensor| levels.push(level.shallow_clone());
        let _ = self
            .0
            .way_down(&pass, xs, &mut Watch::new(&mut keep, &mut |_, _, _| ()));
        Features {
            levels,
            time: pass.time,
            frames: pass.frames,
        }
    }
}
