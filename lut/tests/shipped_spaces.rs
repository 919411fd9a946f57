//! Every block that a shipped temporal space asks to be measured is all that its architectures need.

use lut::{EntryState, Lut, LutCosts, Measurement, Runtime, Samples, eliminate};
use search_spaces::Space;

const SPACES: [(&str, &str); 3] = [
    (
        "shapes-tiny",
        include_str!("../../search-spaces/spaces/shapes-tiny.toml"),
    ),
    (
        "emoji-small",
        include_str!("../../search-spaces/spaces/emoji-small.toml"),
    ),
    ("snapgen-v", include_str!("../../search-spaces/spaces/snapgen-v.toml")),
];

fn samples(value: f64) -> Samples {
    Samples::new(vec![value]).expect("valid")
}

#[test]
fn a_table_of_the_blocks_of_a_space_answers_for_every_choice_and_reference() {
    for (name, toml) in SPACES {
        let space = Space::parse(toml).unwrap_or_else(|error| panic!("{name}: {error}"));
        let dtype = space.unet().expect("a temporal space").dtype;
        let mut table = Lut::new("desk", Runtime::new("libtorch-cpu-1t", "2.11.0"), dtype);
        for block in space.blocks() {
            let measurement = Measurement {
                latency_ms: samples(0.001),
                peak_memory_bytes: samples(1.0),
            };
            table.insert(block, EntryState::Measured(measurement));
        }
        let costs = LutCosts::new(&table, &space);
        let elimination = eliminate(&costs);
        assert_eq!((elimination.undecided.len(), elimination.backbone), (0, None), "{name}");
        assert_eq!(elimination.before, space.size());
        for reference in &space.references {
            let cost = costs
                .compose(&reference.architecture)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let unet = space.unet().expect("a temporal space");
            let layers = space.layers(&reference.architecture);
            assert_eq!(
                cost.parameters,
                Some(unet.parameters(&layers)),
                "{name}: {}",
                reference.name
            );
            assert_eq!(cost.macs, Some(unet.macs(&layers)), "{name}: {}", reference.name);
            assert_eq!(
                cost.pipeline_latency_ms.is_some(),
                space.pipeline.is_some(),
                "{name}: {}",
                reference.name
            );
        }
    }
}
