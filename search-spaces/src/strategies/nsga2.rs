//! NSGA-II (Deb et al. 2002), one child at a time.
//!
//! The first `population` proposals are uniform draws. After them every proposal is bred from the best
//! `population` results so far, by rank and then crowding distance (sections III-A and III-B): parents by
//! binary tournament, uniform crossover, then each position mutates with the mutation rate, to a
//! neighbouring choice where the space declares an order. A child that was proposed before, or that the
//! known costs do not admit, is bred anew. Working one child at a time instead of by generations keeps
//! every worker busy and uses each result at once. Candidates that break a limit or failed do not breed.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::draw::{fresh, generator, uniform};
use crate::pareto::{crowding, ranks};
use crate::search::{Proposal, Step, Strategy, View, point};
use crate::{Architecture, Nsga2Settings, Space};

/// NSGA-II.
#[derive(Debug, Clone, PartialEq)]
pub struct Nsga2 {
    settings: Nsga2Settings,
    seed: u64,
}

/// A result that may breed; the smaller of two pairs of rank and (negated) crowding wins.
struct Parent<'a> {
    number: u64,
    architecture: &'a Architecture,
    rank: usize,
    crowding: f64,
}

impl Nsga2 {
    /// With its settings and a seed.
    #[must_use]
    pub fn new(settings: Nsga2Settings, seed: u64) -> Self {
        Self { settings, seed }
    }

    /// The best results, best first.
    fn population<'a>(&self, view: &View<'a>) -> Vec<Parent<'a>> {
        let results = view.evaluated.iter().filter_map(|candidate| {
            let metrics = view.metrics(candidate)?;
            let admitted = view.space.limits.broken(&metrics).is_empty();
            let point = point(view.space, view.ranges, &metrics)?;
            admitted.then_some((candidate.number, &candidate.architecture, point))
        });
        let results: Vec<_> = results.collect();
        let points: Vec<Vec<f64>> = results.iter().map(|(_, _, point)| point.clone()).collect();
        let ranks = ranks(&points);
        let mut parents: Vec<Parent> = Vec::new();
        for rank in 0.. {
            let members: Vec<usize> = (0..points.len()).filter(|&i| ranks[i] == Some(rank)).collect();
            if members.is_empty() || parents.len() >= self.settings.population as usize {
                break;
            }
            let front: Vec<Vec<f64>> = members.iter().map(|&i| points[i].clone()).collect();
            for (&i, crowding) in members.iter().zip(crowding(&front)) {
                parents.push(Parent {
                    number: results[i].0,
                    architecture: results[i].1,
                    rank,
                    crowding,
                });
            }
        }
        parents.sort_by(|a, b| {
            a.rank
                .cmp(&b.rank)
                .then(b.crowding.total_cmp(&a.crowding))
                .then(a.number.cmp(&b.number))
        });
        parents.truncate(self.settings.population as usize);
        parents
    }

    fn child(&self, space: &Space, parents: &[Parent], rng: &mut ChaCha8Rng) -> Architecture {
        // Parents are sorted, so a tournament is won by the lower index.
        let mut tournament = || {
            rng.random_range(0..parents.len())
                .min(rng.random_range(0..parents.len()))
        };
        let (mother, father) = (parents[tournament()].architecture, parents[tournament()].architecture);
        let mix = rng.random_bool(self.settings.crossover);
        let rate = self.settings.mutation.unwrap_or(1.0 / space.positions.len() as f64);
        let genes = mother.choices().iter().zip(father.choices()).zip(&space.positions);
        let choices = genes.map(|((&mother, &father), position)| {
            let gene = if mix && rng.random_bool(0.5) { father } else { mother };
            if rng.random_bool(rate) {
                mutated(gene, position.choices.len(), space.structure.ordered, rng)
            } else {
                gene
            }
        });
        Architecture::new(choices.collect::<Vec<_>>())
    }
}

/// Another choice: the next smaller or larger where choices are ordered, any where they are not.
fn mutated(gene: u16, choices: usize, ordered: bool, rng: &mut ChaCha8Rng) -> u16 {
    let choices = u16::try_from(choices).unwrap_or(u16::MAX);
    if choices < 2 {
        return gene;
    }
    if !ordered {
        let other = rng.random_range(0..choices - 1);
        return if other >= gene { other + 1 } else { other };
    }
    match gene {
        0 => 1,
        last if last + 1 >= choices => last - 1,
        middle if rng.random_bool(0.5) => middle + 1,
        middle => middle - 1,
    }
}

impl Strategy for Nsga2 {
    fn next(&self, view: &View) -> Step {
        let mut rng = generator(self.seed, view.number());
        let first = view.number() < u64::from(self.settings.population) + view.space.references.len() as u64;
        let parents = if first { Vec::new() } else { self.population(view) };
        let (drawn, why) = match parents.as_slice() {
            [] => (
                fresh(view, &mut rng, |rng| uniform(view.space, rng)),
                "a uniform draw".to_owned(),
            ),
            [best, ..] => {
                let child = fresh(view, &mut rng, |rng| self.child(view.space, &parents, rng));
                (
                    child,
                    format!(
                        "bred from {} parents, the best being number {}",
                        parents.len(),
                        best.number
                    ),
                )
            }
        };
        match drawn {
            Some(architecture) => Step::Propose(Proposal {
                architecture,
                parent: None,
                action: None,
                why,
            }),
            None => Step::Exhausted,
        }
    }
}
