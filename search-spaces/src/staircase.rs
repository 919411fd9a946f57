//! The region of the unit square that a growing set of minimised points dominates.

/// Non-dominated points of the plane, x ascending and y descending.
#[derive(Default)]
pub(crate) struct Staircase(Vec<(f64, f64)>);

impl Staircase {
    /// Whether a point at or below (x, y) was inserted.
    pub(crate) fn covers(&self, x: f64, y: f64) -> bool {
        let next = self.0.partition_point(|step| step.0 <= x);
        next > 0 && self.0[next - 1].1 <= y
    }

    /// Adds a point with both coordinates below 1; the area by which the region up to (1, 1) grows.
    pub(crate) fn insert(&mut self, x: f64, y: f64) -> f64 {
        if self.covers(x, y) {
            return 0.0;
        }
        let first = self.0.partition_point(|step| step.0 < x);
        let last = first + self.0[first..].partition_point(|step| step.1 >= y);
        let mut grown = 0.0;
        let (mut left, mut ceiling) = (x, first.checked_sub(1).map_or(1.0, |before| self.0[before].1));
        for &(right, floor) in &self.0[first..last] {
            grown += (right - left) * (ceiling - y);
            (left, ceiling) = (right, floor);
        }
        let end = self.0.get(last).map_or(1.0, |step| step.0);
        grown += (end - left) * (ceiling - y);
        self.0.splice(first..last, [(x, y)]);
        grown
    }
}
