//! ONNX Runtime's own profile of a session: a JSON array of trace events.

use std::collections::BTreeMap;

use protocol::jobs::NodeFigures;
use serde::Deserialize;

/// One event; other keys are passed over.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    /// Microseconds.
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    op_name: String,
    #[serde(default)]
    provider: String,
}

/// What the nodes of a graph took in the mean of a run, the most costly first.
///
/// # Errors
/// Where the text is no such profile, with line and column.
pub fn of_profile(text: &str) -> Result<Vec<NodeFigures>, serde_json::Error> {
    let events: Vec<Event> = serde_json::from_str(text)?;
    let mut totals: BTreeMap<String, (NodeFigures, f64)> = BTreeMap::new();
    for event in events {
        let Some(name) = event.name.strip_suffix("_kernel_time").filter(|_| event.cat == "Node") else {
            continue;
        };
        let node = NodeFigures {
            name: name.to_owned(),
            operator: event.args.op_name,
            unit: event.args.provider,
            mean_ms: 0.0,
        };
        let (total, runs) = totals.entry(name.to_owned()).or_insert((node, 0.0));
        total.mean_ms += event.dur / 1000.0;
        *runs += 1.0;
    }
    let mean = |(node, runs): (NodeFigures, f64)| NodeFigures {
        mean_ms: node.mean_ms / runs,
        ..node
    };
    let mut nodes: Vec<NodeFigures> = totals.into_values().map(mean).collect();
    nodes.sort_by(|a, b| b.mean_ms.total_cmp(&a.mean_ms));
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_times_of_a_node_are_averaged_over_its_runs() {
        let text = r#"[
            {"cat": "Session", "name": "model_run", "dur": 900, "ph": "X", "args": {}},
            {"cat": "Node", "name": "conv_kernel_time", "dur": 100, "args": {"op_name": "Conv", "provider": "CPUExecutionProvider", "node_index": "0"}},
            {"cat": "Node", "name": "conv_kernel_time", "dur": 300, "args": {"op_name": "Conv", "provider": "CPUExecutionProvider"}},
            {"cat": "Node", "name": "add_kernel_time", "dur": 500, "args": {"op_name": "Add", "provider": "CPUExecutionProvider"}},
            {"cat": "Node", "name": "add_fence_before", "dur": 7, "args": {"op_name": "Add"}}
        ]"#;
        let nodes = of_profile(text).unwrap();
        let told: Vec<_> = nodes
            .iter()
            .map(|n| (n.name.as_str(), n.operator.as_str(), n.mean_ms))
            .collect();
        assert_eq!(told, [("add", "Add", 0.5), ("conv", "Conv", 0.2)]);
        assert!(of_profile("[{").is_err());
    }
}
