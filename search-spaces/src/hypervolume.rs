//! Hypervolume of minimised points with the reference at 1 in every coordinate.

/// The volume of the box from the points to (1, …, 1) that at least one point dominates.
#[must_use]
pub fn hypervolume(points: &[Vec<f64>]) -> f64 {
    let inside: Vec<&Vec<f64>> = points.iter().filter(|p| p.iter().all(|x| *x < 1.0)).collect();
    match inside.first().map(|p| p.len()) {
        Some(2) => {
            let mut sorted = inside;
            sorted.sort_by(|a, b| crate::pareto::lexicographic(a, b));
            let (mut volume, mut ceiling) = (0.0, 1.0);
            for p in sorted {
                if p[1] < ceiling {
                    volume += (1.0 - p[0]) * (ceiling - p[1]);
                    ceiling = p[1];
                }
            }
            volume
        }
        _ => 0.0,
    }
}
