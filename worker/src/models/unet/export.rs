//! The UNet as graphs: one, or several of about the same cost that run one after another (section 4.3: a phone's
//! accelerator takes no graph as large as the whole).
//!
//! A graph takes what an earlier one gave out under the same name: the running tensor as `hidden.N` into part N, and each
//! skip tensor as `skip.K` from the part that made it to the part that uses it. The embedding of the time comes from
//! outside: it is the same for every clip (the paper's Appendix F).

use std::collections::BTreeMap;

use search_spaces::UnetConfig;
use tch::Tensor;

use super::{Activations, Moment, UNet};
use crate::onnx::{Export, Graph, Precision, Value};

/// Sizes of what a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSizes {
    /// `[batch, latent_channels, frames, h, w]`.
    pub latents: [i64; 5],
    /// Tokens of a text.
    pub text_tokens: i64,
    /// Width of a token.
    pub text_width: i64,
}

impl PassSizes {
    /// Of `batch` clips of the size that a configuration is for.
    #[must_use]
    pub fn of(config: &UnetConfig, batch: i64) -> Self {
        let [channels, frames, height, width] =
            [config.latent_channels, config.frames, config.height, config.width].map(|size| size as i64);
        Self {
            latents: [batch, channels, frames, height, width],
            text_tokens: config.text_tokens as i64,
            text_width: config.text_width as i64,
        }
    }
}

/// The graphs of a UNet.
#[derive(Debug)]
pub struct UnetGraphs {
    /// In the order in which they run.
    pub graphs: Vec<Graph>,
    /// Where the pass was cut, for [`UNet::carried`].
    cuts: Vec<usize>,
}

impl UNet {
    /// The pass as `parts` graphs of about the same number of multiplications: `latents`, `time_embedding` (see
    /// [`UNet::embed`]) and `text` to `velocity`. They are named `unet`, or `unet.0` and so on where there are several.
    ///
    /// # Errors
    /// Where the pass has no place for so many cuts: how many parts there can be.
    pub fn export(&self, sizes: PassSizes, precision: Precision, parts: u32) -> Result<UnetGraphs, String> {
        let whole = self.assembled(sizes, precision, &[]);
        if parts == 1 {
            return Ok(whole.into_graphs());
        }
        let most = whole.costs.len() + 1;
        let Some(cuts) = cut(&whole.costs, whole.graph.macs(), parts as usize) else {
            return Err(format!("`unet_parts` is {parts}; allowed are 1 to {most}"));
        };
        Ok(self.assembled(sizes, precision, &cuts).into_graphs())
    }

    /// The tensors that go from graph to graph in a pass, by the graphs' names, and `velocity`.
    pub fn carried(
        &self,
        graphs: &UnetGraphs,
        latents: &Tensor,
        time_embedding: &Tensor,
        text: &Tensor,
    ) -> BTreeMap<String, Tensor> {
        let mut carried = BTreeMap::new();
        let mut between = |place: usize, hidden: &Tensor, skips: &[Tensor]| {
            if let Ok(cut) = graphs.cuts.binary_search(&place) {
                carried.insert(format!("hidden.{}", cut + 1), hidden.shallow_clone());
                let named = skips.iter().enumerate();
                carried.extend(named.map(|(i, skip)| (format!("skip.{i}"), skip.shallow_clone())));
            }
        };
        let time = Moment::Embedded(time_embedding);
        let velocity = self.walk(latents, time, text, Activations::Kept, &mut |_, _| (), &mut between);
        carried.insert("velocity".to_owned(), velocity);
        carried
    }

    /// Width of the embedding of a time.
    #[must_use]
    pub fn time_width(&self) -> i64 {
        self.time_embedding.outputs()
    }

    /// [`Self::walk`] as graphs that are cut at the places of `cuts`.
    fn assembled<'a>(&self, sizes: PassSizes, precision: Precision, cuts: &'a [usize]) -> Assembly<'a> {
        let [_, _, frames, _, _] = sizes.latents;
        let mut pass = Assembly::new(sizes, precision, cuts, self.time_width());
        let latents = pass.graph.input("latents", &sizes.latents);
        let mut hidden = pass.within("conv_in", |graph, _| export_conv_in(graph, &self.conv_in, &latents));
        let mut skips = vec![hidden.clone()];
        pass.reached(&mut hidden, &mut skips);
        for (i, level) in self.down.iter().enumerate() {
            for (j, layer) in level.layers.iter().enumerate() {
                hidden = pass.within(format_args!("down.{i}.{j}"), |graph, beside| {
                    layer.read(|layer| layer.export(graph, &hidden, &beside.time, &beside.text))
                });
                if let Some(temporal) = level.temporal.as_ref().filter(|_| j + 1 == level.layers.len()) {
                    pass.reached(&mut hidden, &mut skips);
                    hidden = pass.within(format_args!("down.{i}.temporal"), |graph, beside| {
                        temporal.read(|stack| stack.export(graph, &hidden, frames, &beside.text))
                    });
                }
                skips.push(hidden.clone());
                pass.reached(&mut hidden, &mut skips);
            }
            if let Some(downsample) = &level.downsample {
                hidden = pass.within(format_args!("down.{i}"), |graph, _| hidden.through(graph, downsample));
                skips.push(hidden.clone());
                pass.reached(&mut hidden, &mut skips);
            }
        }
        if let Some(mid) = &self.mid {
            hidden = pass.within("mid", |graph, beside| {
                mid.read(|mid| mid.export(graph, &hidden, &beside.time, &beside.text))
            });
            pass.reached(&mut hidden, &mut skips);
            if let Some(temporal) = &self.mid_temporal {
                hidden = pass.within("mid.temporal", |graph, beside| {
                    temporal.read(|stack| stack.export(graph, &hidden, frames, &beside.text))
                });
                pass.reached(&mut hidden, &mut skips);
            }
        }
        for (i, level) in self.up.iter().enumerate() {
            for (j, layer) in level.layers.iter().enumerate() {
                let Some(skip) = skips.pop() else {
                    pass.graph.refuse("every up layer takes a skip tensor", &hidden);
                    break;
                };
                hidden = pass.within(format_args!("up.{i}.{j}"), |graph, beside| {
                    layer.read(|layer| layer.export_with_skip(graph, &hidden, &skip, &beside.time, &beside.text))
                });
                pass.reached(&mut hidden, &mut skips);
            }
            if let Some(temporal) = &level.temporal {
                hidden = pass.within(format_args!("up.{i}.temporal"), |graph, beside| {
                    temporal.read(|stack| stack.export(graph, &hidden, frames, &beside.text))
                });
                pass.reached(&mut hidden, &mut skips);
            }
            if let (Some(upsample), Some(next)) = (&level.upsample, skips.last()) {
                let size = [next.size(2), next.size(3)];
                hidden = pass.within(format_args!("up.{i}"), |graph, _| upsample.export(graph, &hidden, size));
                pass.reached(&mut hidden, &mut skips);
            }
        }
        let velocity = pass.within("head", |graph, _| hidden.through(graph, &self.head));
        let clip = pass.graph.unflatten(&velocity, 0, &[-1, frames]);
        let velocity = pass.graph.swap(&clip, 1, 2); // [b, latent_channels, t, h, w]
        pass.graph.output("velocity", &velocity);
        pass
    }
}

/// The first convolution as part of a graph, see [`super::conv_in`].
pub(crate) fn export_conv_in(graph: &mut Graph, conv: &impl Export, xs: &Value) -> Value {
    let frames = graph.swap(xs, 1, 2);
    graph.flatten(&frames, 0, 1).through(graph, conv)
}

/// What every part may read beside the running tensor.
#[derive(Debug, Clone)]
struct Beside {
    time: Value,
    text: Value,
}

/// A pass while it is put together.
struct Assembly<'a> {
    sizes: PassSizes,
    time_width: i64,
    cuts: &'a [usize],
    done: Vec<Graph>,
    graph: Graph,
    beside: Beside,
    /// Multiplications before each place where the pass can be cut.
    costs: Vec<u64>,
}

impl<'a> Assembly<'a> {
    fn new(sizes: PassSizes, precision: Precision, cuts: &'a [usize], time_width: i64) -> Self {
        let name = if cuts.is_empty() { "unet" } else { "unet.0" };
        let mut graph = Graph::new(name, precision);
        let beside = beside(&mut graph, sizes, time_width);
        Self {
            sizes,
            time_width,
            cuts,
            done: Vec::new(),
            graph,
            beside,
            costs: Vec::new(),
        }
    }

    fn within<T>(&mut self, block: impl std::fmt::Display, build: impl FnOnce(&mut Graph, &Beside) -> T) -> T {
        let beside = &self.beside;
        self.graph.within(block, |graph| build(graph, beside))
    }

    /// Between two blocks: counts, and where the pass is cut, goes on in the next graph.
    fn reached(&mut self, hidden: &mut Value, skips: &mut [Value]) {
        let place = self.costs.len();
        let before: u64 = self.done.iter().map(Graph::macs).sum();
        self.costs.push(before + self.graph.macs());
        if !self.cuts.contains(&place) {
            return;
        }
        let index = self.done.len() + 1;
        let mut next = Graph::new(&format!("unet.{index}"), self.graph.precision());
        self.beside = beside(&mut next, self.sizes, self.time_width);
        let is_skip = skips.last() == Some(hidden);
        for (i, skip) in skips.iter_mut().enumerate() {
            let name = format!("skip.{i}");
            if skip.name() != name {
                self.graph.output(&name, skip);
            }
            *skip = next.input(&name, skip.shape());
        }
        if let Some(skip) = skips.last().filter(|_| is_skip) {
            *hidden = skip.clone();
        } else {
            let name = format!("hidden.{index}");
            self.graph.output(&name, hidden);
            *hidden = next.input(&name, hidden.shape());
        }
        self.done.push(std::mem::replace(&mut self.graph, next));
    }

    fn into_graphs(self) -> UnetGraphs {
        let mut graphs = self.done;
        graphs.push(self.graph);
        UnetGraphs {
            graphs,
            cuts: self.cuts.to_vec(),
        }
    }
}

fn beside(graph: &mut Graph, sizes: PassSizes, time_width: i64) -> Beside {
    let batch = sizes.latents[0];
    Beside {
        time: graph.input("time_embedding", &[batch, time_width]),
        text: graph.input("text", &[batch, sizes.text_tokens, sizes.text_width]),
    }
}

/// The places at which to cut into `parts`, so that the costliest part costs least. `costs` are those before each
/// place, `total` that of all.
fn cut(costs: &[u64], total: u64, parts: usize) -> Option<Vec<usize>> {
    if parts == 0 || costs.len() + 1 < parts {
        return None;
    }
    // best[i]: the costliest part, and the cuts, of what lies before place i.
    let places: Vec<u64> = costs.iter().copied().chain([total]).collect();
    let mut best: Vec<Option<(u64, Vec<usize>)>> = places.iter().map(|cost| Some((*cost, Vec::new()))).collect();
    for _ in 1..parts {
        let with_one_more = |end: usize| {
            let options = (0..end).filter_map(|at| {
                let (worst, cuts) = best[at].as_ref()?;
                let cuts: Vec<usize> = cuts.iter().copied().chain([at]).collect();
                Some(((*worst).max(places[end] - places[at]), cuts))
            });
            options.min_by_key(|(worst, _)| *worst)
        };
        best = (0..places.len()).map(with_one_more).collect();
    }
    best.pop().flatten().map(|(_, cuts)| cuts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_cut_where_its_parts_cost_the_same() {
        let costs = [10, 20, 50, 60, 100];
        assert_eq!(cut(&costs, 120, 1), Some(vec![]));
        assert_eq!(cut(&costs, 120, 2), Some(vec![3]), "60 and 60");
        let worst = |cuts: Vec<usize>| {
            let ends = cuts.iter().map(|at| costs[*at]).chain([120]);
            let starts = std::iter::once(0).chain(cuts.iter().map(|at| costs[*at]));
            ends.zip(starts).map(|(end, start)| end - start).max()
        };
        assert_eq!(cut(&costs, 120, 3).and_then(worst), Some(50), "50, 50 and 20");
        assert_eq!(cut(&costs, 120, 6), Some(vec![0, 1, 2, 3, 4]));
        assert_eq!(cut(&costs, 120, 7), None);
        assert_eq!(cut(&costs, 120, 0), None);
    }
}
