//! Searches over the public tables. They are not part of the project: set `TEMPONAS_DATA` to the folder
//! that holds them, or lay it beside the checkout as `shared/data`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use search_spaces::search::{Advance, Evaluated, Outcome, hypervolume, propose_next};
use search_spaces::strategies::AnyStrategy;
use search_spaces::{Space, Table};

fn table(space: &Space, file: &str) -> Option<Table> {
    let folder = std::env::var_os("TEMPONAS_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")),
        PathBuf::from,
    );
    let path = folder.join(file);
    let Ok(packed) = std::fs::read(&path) else {
        println!(
            "skipped: {} is not there; TEMPONAS_DATA names the folder of the tables",
            path.display()
        );
        return None;
    };
    let mut csv = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_end(&mut csv)
        .expect("a gzip file");
    Some(Table::parse(space, &csv).unwrap_or_else(|error| panic!("{error}")))
}

/// Share of the table's own hypervolume after each number of evaluations.
fn search(space: &Space, table: &Table) -> Vec<f64> {
    let ranges = table.ranges(space).expect("columns that vary");
    let whole = table.hypervolume(space, &ranges);
    let strategy = AnyStrategy::new(&space.search);
    let (mut finished, mut candidates, mut shares) = (BTreeMap::new(), Vec::new(), Vec::new());
    while candidates.len() < space.search.max_evaluations as usize {
        let advance = propose_next(
            &strategy,
            space,
            table,
            &ranges,
            &finished,
            &candidates,
            space.search.width,
        );
        let Advance::Propose(proposal) = advance else { break };
        let number = candidates.len() as u64;
        let architecture = proposal.architecture;
        let outcome = table.look_up(&architecture).map_or(Outcome::Failed, Outcome::Metrics);
        candidates.push((number, architecture.clone()));
        finished.insert(
            number,
            Evaluated {
                number,
                architecture,
                outcome,
            },
        );
        let evaluated: Vec<Evaluated> = finished.values().cloned().collect();
        shares.push(hypervolume(space, &ranges, &evaluated) / whole);
    }
    shares
}

#[test]
fn actions_reach_99_percent_of_nas_bench_macro_within_130_evaluations() {
    let space = Space::parse(include_str!("../spaces/nas-bench-macro.toml")).expect("a space");
    let Some(table) = table(&space, "nas_bench_macro/nas_bench_macro.csv.gz") else {
        return;
    };
    assert_eq!((table.len(), table.missing()), (6561, 0));
    let ranges = table.ranges(&space).expect("columns that vary");
    assert_eq!(table.front(&space, &ranges).len(), 35);
    let shares = search(&space, &table);
    println!("share of the hypervolume: {:?}", shares.last());
    let reached = shares.iter().position(|share| *share >= 0.99);
    println!("99 % after {reached:?}; at 118: {:?}", shares.get(117));
    assert!(
        shares.len() <= 130 && reached.is_some(),
        "{:?} after {}",
        shares.last(),
        shares.len()
    );
}

#[test]
fn nsga2_reaches_98_percent_of_nas_bench_201_within_300_evaluations_in_the_median_of_ten_seeds() {
    let mut space = Space::parse(include_str!("../spaces/nas-bench-201.toml")).expect("a space");
    let Some(table) = table(&space, "nb201/nb201_acc_latency_compact.csv.gz") else {
        return;
    };
    assert_eq!((table.len(), table.missing()), (15_625, 0));
    let mut shares: Vec<f64> = (0..10)
        .map(|seed| {
            space.search.seed = seed;
            let shares = search(&space, &table);
            assert_eq!(shares.len(), 300);
            shares[299]
        })
        .collect();
    shares.sort_by(f64::total_cmp);
    println!("shares of the hypervolume: {shares:.4?}");
    let median = (shares[4] + shares[5]) / 2.0;
    assert!(median >= 0.98, "{median}");
}
