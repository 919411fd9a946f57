//! What a space declares about how its choices relate.

use serde::{Deserialize, Serialize};

use crate::Architecture;

/// Declared structure. Encoders and actions use only what stands here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// The choices of a position are ordered from small to large.
    pub ordered: bool,
    /// Code of the choice that means "nothing here"; in a cell graph it cuts the edge.
    pub null: Option<String>,
    /// Edges of a cell graph, one per position: from node, to node. The cell's input is the lowest
    /// node, its output the highest.
    pub edges: Option<Vec<(u8, u8)>>,
    /// Index of the null choice at each position, where it has one.
    pub(crate) null_index: Vec<Option<u16>>,
}

impl Structure {
    /// Index of the null choice at a position.
    #[must_use]
    pub fn null_at(&self, position: usize) -> Option<u16> {
        self.null_index.get(position).copied().flatten()
    }

    /// For each position whether its choice can influence the output. Without a cell graph all do; in
    /// one, an edge does if it lies on a path of uncut edges from the input to the output.
    #[must_use]
    pub fn live(&self, architecture: &Architecture) -> Vec<bool> {
        let choices = architecture.choices();
        let Some(edges) = &self.edges else {
            return vec![true; choices.len()];
        };
        let open: Vec<bool> = choices
            .iter()
            .enumerate()
            .map(|(position, choice)| self.null_at(position) != Some(*choice))
            .collect();
        let nodes = edges.iter().flat_map(|(from, to)| [*from, *to]);
        let (Some(input), Some(output)) = (nodes.clone().min(), nodes.max()) else {
            return open;
        };
        let from_input = reach(edges, &open, input, |(from, to)| (from, to));
        let to_output = reach(edges, &open, output, |(from, to)| (to, from));
        edges
            .iter()
            .zip(&open)
            .map(|(&(from, to), &open)| open && from_input[usize::from(from)] && to_output[usize::from(to)])
            .collect()
    }

    /// The architecture with every dead branch cut: what an encoder sees.
    #[must_use]
    pub fn without_dead_branches(&self, architecture: &Architecture) -> Architecture {
        let live = self.live(architecture);
        let choices: Vec<u16> = architecture
            .choices()
            .iter()
            .enumerate()
            .map(|(position, &choice)| match self.null_at(position) {
                Some(null) if !live[position] => null,
                _ => choice,
            })
            .collect();
        Architecture::new(choices)
    }
}

/// Nodes that open edges connect to `start`, followed in the direction that `orient` gives them.
fn reach(edges: &[(u8, u8)], open: &[bool], start: u8, orient: impl Fn((u8, u8)) -> (u8, u8)) -> Vec<bool> {
    let mut reached = vec![false; usize::from(u8::MAX) + 1];
    reached[usize::from(start)] = true;
    loop {
        let mut grew = false;
        for (&edge, _) in edges.iter().zip(open).filter(|(_, open)| **open) {
            let (from, to) = orient(edge);
            if reached[usize::from(from)] && !reached[usize::from(to)] {
                reached[usize::from(to)] = true;
                grew = true;
            }
        }
        if !grew {
            return reached;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Space;

    #[test]
    fn an_edge_is_dead_when_no_open_path_leads_through_it() {
        let space = Space::parse(include_str!("../spaces/nas-bench-201.toml")).unwrap();
        let structure = &space.structure;
        let live = |text| structure.live(&space.architecture(text).unwrap());
        // Edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3.
        assert_eq!(live("333333"), [true; 6]);
        // Node 1 leads nowhere: its edge from the input is dead, and so is nothing else.
        assert_eq!(live("330303"), [false, true, false, true, false, true]);
        // Node 2 is never reached.
        assert_eq!(live("300333"), [true, false, false, true, true, false]);
        assert_eq!(live("000000"), [false; 6]);
        let cut = structure.without_dead_branches(&space.architecture("330303").unwrap());
        assert_eq!(space.print(&cut), "030303");
    }

    #[test]
    fn without_a_graph_everything_is_live() {
        let space = Space::parse(include_str!("../spaces/nas-bench-macro.toml")).unwrap();
        assert_eq!(
            space.structure.live(&space.architecture("00000000").unwrap()),
            [true; 8]
        );
    }
}
