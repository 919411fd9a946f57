//! Hypervolume of minimised points with the reference at 1 in every coordinate.
//!
//! A point with a NaN, or with a coordinate of 1 or more, dominates no volume. Equal points count once.
//! Two and three objectives are swept; more use the exclusive volumes of While, Bradstreet and Barone
//! (2012), over the three-objective sweep where points are few.

use crate::pareto::{front, lexicographic};
use crate::staircase::Staircase;

/// The volume of the box from the points to (1, …, 1) that at least one point dominates. All points have
/// as many coordinates as the first; others are ignored.
#[must_use]
pub fn hypervolume(points: &[Vec<f64>]) -> f64 {
    let Some(objectives) = points.first().map(Vec::len) else {
        return 0.0;
    };
    let inside = |p: &&Vec<f64>| p.len() == objectives && p.iter().all(|x| *x < 1.0);
    let inside: Vec<Vec<f64>> = points.iter().filter(inside).cloned().collect();
    volume(inside, objectives)
}

fn volume(mut points: Vec<Vec<f64>>, objectives: usize) -> f64 {
    if points.is_empty() || objectives == 0 {
        return 0.0;
    }
    match objectives {
        1 => 1.0 - points.iter().map(|p| p[0]).fold(1.0, f64::min),
        2 => {
            let mut region = Staircase::default();
            points.iter().map(|p| region.insert(p[0], p[1])).sum()
        }
        3 => {
            points.sort_by(|a, b| a[2].total_cmp(&b[2]));
            let mut region = Staircase::default();
            let (mut area, mut volume, mut floor) = (0.0, 0.0, 0.0);
            for p in &points {
                volume += area * (p[2] - floor);
                area += region.insert(p[0], p[1]);
                floor = p[2];
            }
            volume + area * (1.0 - floor)
        }
        _ => by_exclusive_volumes(points, objectives),
    }
}

/// Each point adds its box, less what the later points have of that box.
fn by_exclusive_volumes(points: Vec<Vec<f64>>, objectives: usize) -> f64 {
    let mut points: Vec<Vec<f64>> = front(&points).into_iter().map(|i| points[i].clone()).collect();
    // Worst first in the last objective, so that the later points cut much of the earlier boxes away.
    points.sort_by(|a, b| {
        b[objectives - 1]
            .total_cmp(&a[objectives - 1])
            .then_with(|| lexicographic(a, b))
    });
    let exclusive = |(i, point): (usize, &Vec<f64>)| {
        let own: f64 = point.iter().map(|x| 1.0 - x).product();
        let within = |later: &Vec<f64>| later.iter().zip(point).map(|(a, b)| a.max(*b)).collect::<Vec<f64>>();
        let mut shared: Vec<Vec<f64>> = points[i + 1..].iter().map(within).collect();
        // All later points are at least as good in the last objective: there the shared boxes are equal.
        let depth = 1.0 - point[objectives - 1];
        for p in &mut shared {
            p.pop();
        }
        own - volume(shared, objectives - 1) * depth
    };
    points.iter().enumerate().map(exclusive).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Sum over all subsets of the box that their worst coordinates span, with alternating signs.
    fn by_inclusion_and_exclusion(points: &[Vec<f64>]) -> f64 {
        let mut total = 0.0;
        for subset in 1_u32..1 << points.len() {
            let chosen = points
                .iter()
                .enumerate()
                .filter(|(i, _)| subset >> i & 1 == 1)
                .map(|(_, p)| p);
            let worst = chosen.fold(vec![0.0_f64; points[0].len()], |w, p| {
                w.iter().zip(p).map(|(a, b)| a.max(*b)).collect()
            });
            let volume: f64 = worst.iter().map(|x| 1.0 - x).product();
            total += if subset.count_ones() % 2 == 1 { volume } else { -volume };
        }
        total
    }

    proptest! {
        #[test]
        fn every_dimension_agrees_with_inclusion_and_exclusion(
            points in (1_usize..=6).prop_flat_map(|d| prop::collection::vec(prop::collection::vec(0.0..=1.0_f64, d), 1..8)),
        ) {
            prop_assert!((hypervolume(&points) - by_inclusion_and_exclusion(&points)).abs() < 1e-9);
        }

        /// Coordinates from a coarse grid make ties everywhere.
        #[test]
        fn ties_change_nothing(
            points in (2_usize..=5).prop_flat_map(|d| prop::collection::vec(prop::collection::vec((0_u8..4).prop_map(|x| f64::from(x) / 4.0), d), 1..8)),
        ) {
            let twice: Vec<_> = points.iter().chain(points.iter().rev()).cloned().collect();
            prop_assert!((hypervolume(&twice) - by_inclusion_and_exclusion(&points)).abs() < 1e-9);
        }

        #[test]
        fn no_point_takes_volume_away_and_order_does_not_matter(
            points in prop::collection::vec(prop::collection::vec(0.0..=1.2_f64, 3), 0..30),
            extra in prop::collection::vec(0.0..=1.2_f64, 3),
        ) {
            let before = hypervolume(&points);
            let mut more = vec![extra];
            more.extend(points.iter().rev().cloned());
            prop_assert!(hypervolume(&more) >= before - 1e-12);
            let reversed: Vec<_> = points.iter().rev().cloned().collect();
            prop_assert!((hypervolume(&reversed) - before).abs() < 1e-12);
        }
    }

    #[test]
    fn four_objectives_agree_with_a_million_darts() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = |n: usize| {
            (0..n)
                .map(|_| (0..4).map(|_| rng.random::<f64>()).collect())
                .collect::<Vec<Vec<f64>>>()
        };
        let points = draw(60);
        let darts = draw(1_000_000);
        let hits = darts
            .iter()
            .filter(|dart| points.iter().any(|p| p.iter().zip(*dart).all(|(a, b)| a <= b)))
            .count();
        let share = hits as f64 / 1e6;
        // Four standard errors of a share from a million draws.
        assert!((hypervolume(&points) - share).abs() < 4.0 * (share * (1.0 - share) / 1e6).sqrt());
    }

    #[test]
    fn steps_on_a_diagonal_have_the_volume_of_their_closed_form() {
        let n = 1000;
        let step = |i: usize| (i + 1) as f64 / (n + 1) as f64;
        let diagonal: Vec<Vec<f64>> = (0..n).map(|i| vec![step(i), 1.0 - step(i)]).collect();
        // n(n+1)/2 squares of side 1/(n+1).
        let closed = n as f64 / (2.0 * (n + 1) as f64);
        assert!((hypervolume(&diagonal) - closed).abs() < 1e-12);
        // A third coordinate of one half halves it.
        let slab: Vec<Vec<f64>> = diagonal.iter().map(|p| vec![p[0], p[1], 0.5]).collect();
        assert!((hypervolume(&slab) - closed / 2.0).abs() < 1e-12);
    }

    #[test]
    fn nan_and_the_reference_itself_dominate_nothing() {
        assert_eq!(hypervolume(&[]), 0.0);
        assert_eq!(hypervolume(&[vec![f64::NAN, 0.0]]), 0.0);
        assert_eq!(hypervolume(&[vec![1.0, 0.0], vec![0.0, 1.5]]), 0.0);
        assert_eq!(hypervolume(&[vec![0.5, 0.5], vec![f64::NAN, 0.0], vec![0.0]]), 0.25);
    }
}
