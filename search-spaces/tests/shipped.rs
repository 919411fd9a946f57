//! The space files that ship.

use search_spaces::{Space, SpaceKind, UnetConfig};

fn shipped(name: &str) -> Space {
    let text = match name {
        "shapes-tiny" => include_str!("../spaces/shapes-tiny.toml"),
        "emoji-small" => include_str!("../spaces/emoji-small.toml"),
        "snapgen-v" => include_str!("../spaces/snapgen-v.toml"),
        "nas-bench-201" => include_str!("../spaces/nas-bench-201.toml"),
        "nas-bench-macro" => include_str!("../spaces/nas-bench-macro.toml"),
        _ => panic!("no such file"),
    };
    Space::parse(text).unwrap_or_else(|error| panic!("{name}:\n{error}"))
}

fn unet(space: &Space) -> &UnetConfig {
    space.unet().expect("a temporal UNet")
}

#[test]
fn every_shipped_space_is_valid_and_of_the_stated_size() {
    for (name, size) in [
        ("shapes-tiny", 7_u128.pow(5)),
        ("emoji-small", 7_u128.pow(5)),
        ("snapgen-v", 13_u128.pow(4) * 19_u128.pow(3)),
        ("nas-bench-201", 15_625),
        ("nas-bench-macro", 6_561),
    ] {
        let space = shipped(name);
        assert_eq!((space.name.as_str(), space.size()), (name, size));
    }
}

#[test]
fn the_small_backbones_stay_below_a_million_parameters() {
    for name in ["shapes-tiny", "emoji-small"] {
        let parameters = unet(&shipped(name)).parameters(&[]);
        assert!((400_000..1_000_000).contains(&parameters), "{name}: {parameters}");
    }
}

/// 327M is the paper's figure; no other width in steps of 32 comes nearer.
#[test]
fn the_big_backbone_is_the_nearest_to_the_papers_size() {
    let space = shipped("snapgen-v");
    let miss = |widest: u64| {
        let mut unet = unet(&space).clone();
        unet.channels[2] = widest;
        unet.parameters(&[]).abs_diff(327_000_000)
    };
    let widest = unet(&space).channels[2];
    for other in [widest - 32, widest + 32] {
        assert!(
            miss(widest) < miss(other),
            "{widest}: {}, {other}: {}",
            miss(widest),
            miss(other)
        );
    }
    assert!(miss(widest) < 8_000_000, "{}", miss(widest));
}

#[test]
fn architectures_are_printed_as_the_spaces_codes_allow() {
    let tiny = shipped("shapes-tiny");
    let printed = "-.c1.s3.-.x1";
    assert_eq!(tiny.print(&tiny.architecture(printed).unwrap()), printed);
    let table = shipped("nas-bench-macro");
    assert!(matches!(table.kind, SpaceKind::Table(_)));
    assert_eq!(table.print(&table.architecture("01200210").unwrap()), "01200210");
    let big = shipped("snapgen-v");
    let layers = big.layers(&big.architecture("-.c1.s3x2.-.-.-.-").unwrap());
    assert_eq!(layers[2].map(|layer| layer.depth), Some(2));
}
