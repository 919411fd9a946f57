//! Dominance between minimised points.
//!
//! A point with a NaN dominates nothing and is on no front. Of equal points the first stands for all.

use std::cmp::Ordering;

use crate::staircase::Staircase;

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

/// Indices of the non-dominated points, ascending. Points with fewer or more coordinates than the first
/// are left out.
#[must_use]
pub fn front(points: &[Vec<f64>]) -> Vec<usize> {
    let mut front = front_of(points, (0..points.len()).collect());
    front.sort_unstable();
    front
}

/// The front of each point, 0 for the non-dominated, 1 for those that only the former dominate, and so
/// on. Equal points follow one another in the order given; points with a NaN have no rank.
#[must_use]
pub fn ranks(points: &[Vec<f64>]) -> Vec<Option<usize>> {
    let mut ranks = vec![None; points.len()];
    let mut left: Vec<usize> = (0..points.len()).collect();
    for rank in 0.. {
        let front = front_of(points, left.clone());
        if front.is_empty() {
            break;
        }
        for i in front {
            ranks[i] = Some(rank);
        }
        left.retain(|&i| ranks[i].is_none());
    }
    ranks
}

/// Crowding distance within one front (Deb et al. 2002, section III-B): the extent of the gap between a
/// point's neighbours, summed over objectives; infinite at the ends.
#[must_use]
pub fn crowding(points: &[Vec<f64>]) -> Vec<f64> {
    let mut distance = vec![0.0; points.len()];
    let objectives = points.first().map_or(0, Vec::len);
    for objective in 0..objectives {
        let at = |i: usize| points[i][objective];
        let mut order: Vec<usize> = (0..points.len()).collect();
        order.sort_by(|&i, &j| at(i).total_cmp(&at(j)).then(i.cmp(&j)));
        let (Some(&first), Some(&last)) = (order.first(), order.last()) else {
            continue;
        };
        let extent = at(last) - at(first);
        distance[first] = f64::INFINITY;
        distance[last] = f64::INFINITY;
        if extent > 0.0 {
            for gap in order.windows(3) {
                distance[gap[1]] += (at(gap[2]) - at(gap[0])) / extent;
            }
        }
    }
    distance
}

fn front_of(points: &[Vec<f64>], mut order: Vec<usize>) -> Vec<usize> {
    let objectives = points.first().map_or(0, Vec::len);
    order.retain(|&i| points[i].len() == objectives && points[i].iter().all(|x| !x.is_nan()));
    // After a lexicographic sort a point can only be dominated by an earlier one.
    order.sort_by(|&i, &j| lexicographic(&points[i], &points[j]).then(i.cmp(&j)));
    let mut front: Vec<usize> = Vec::new();
    let mut covered = Staircase::default();
    for i in order {
        let p = &points[i];
        // Earlier points are no worse in the first coordinate, so at most two are left to compare.
        let dominated = match objectives {
            0 => true,
            1 => !front.is_empty(),
            2 => covered.covers(0.0, p[1]),
            3 => covered.covers(p[1], p[2]),
            _ => front.iter().rev().any(|&j| dominates_weakly(&points[j], p)),
        };
        if !dominated {
            match objectives {
                2 => drop(covered.insert(0.0, p[1])),
                3 => drop(covered.insert(p[1], p[2])),
                _ => {}
            }
            front.push(i);
        }
    }
    front
}

/// Coordinates one after another; −0 and 0 are equal, as they are for dominance.
pub(crate) fn lexicographic(a: &[f64], b: &[f64]) -> Ordering {
    let order = |(a, b): (&f64, &f64)| a.partial_cmp(b).unwrap_or(Ordering::Equal);
    a.iter()
        .zip(b)
        .map(order)
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few distinct values, so that ties and equal points are common; now and then a NaN.
    fn coordinate() -> impl Strategy<Value = f64> {
        prop_oneof![9 => (-2_i8..3).prop_map(f64::from), 1 => Just(f64::NAN), 1 => Just(-0.0)]
    }

    fn points() -> impl Strategy<Value = Vec<Vec<f64>>> {
        (1_usize..=5).prop_flat_map(|d| prop::collection::vec(prop::collection::vec(coordinate(), d), 0..40))
    }

    proptest! {
        #[test]
        fn the_front_is_what_the_definition_says(points in points()) {
            let expected: Vec<usize> = (0..points.len())
                .filter(|&i| points[i].iter().all(|x| !x.is_nan()))
                .filter(|&i| !points.iter().any(|other| dominates(other, &points[i])))
                .filter(|&i| !points[..i].iter().any(|other| other == &points[i]))
                .collect();
            prop_assert_eq!(front(&points), expected);
        }

        #[test]
        fn a_dominated_point_ranks_behind_its_dominator(points in points()) {
            let ranks = ranks(&points);
            for (i, a) in points.iter().enumerate() {
                prop_assert_eq!(ranks[i].is_none(), a.iter().any(|x| x.is_nan()));
                for (j, b) in points.iter().enumerate() {
                    if dominates(a, b) {
                        prop_assert!(ranks[i] < ranks[j]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_ends_of_a_front_are_never_crowded() {
        let points = vec![vec![0.0, 1.0], vec![0.5, 0.5], vec![0.6, 0.4], vec![1.0, 0.0]];
        let distance = crowding(&points);
        assert!(distance[0].is_infinite() && distance[3].is_infinite());
        // Neighbours of the second: 0 to 0.6 and 1 to 0.4.
        assert!((distance[1] - 1.2).abs() < 1e-12);
    }
}
