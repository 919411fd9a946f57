//! Dominance between minimised points.
//!
//! A point with a NaN dominates nothing and is on no front. Of equal points the first stands for all.

use std::cmp::Ordering;

/// Whether `a` is at least as good as `b` everywhere. A NaN on either side makes it false.
#[must_use]
pub fn dominates_weakly(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a <= b)
}

/// Whether `a` is at least as good as `b` everywhere and better somewhere.
#[must_use]
pub fn dominates(a: &[f64], b: &[f64]) -> bool {
    dominates_weakly(a, b) && a.iter().zip(b).any(|(a, b)| a < b)
}

/// Indices of the non-dominated points, ascending.
#[must_use]
pub fn front(points: &[Vec<f64>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len())
        .filter(|&i| points[i].iter().all(|x| !x.is_nan()))
        .collect();
    // After a lexicographic sort a point can only be dominated by an earlier one.
    order.sort_by(|&i, &j| lexicographic(&points[i], &points[j]).then(i.cmp(&j)));
    let mut front: Vec<usize> = Vec::new();
    for i in order {
        if !front.iter().rev().any(|&j| dominates_weakly(&points[j], &points[i])) {
            front.push(i);
        }
    }
    front.sort_unstable();
    front
}

pub(crate) fn lexicographic(a: &[f64], b: &[f64]) -> Ordering {
    a.iter()
        .zip(b)
        .map(|(a, b)| a.total_cmp(b))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}
