use super::*;

/// The columns of a row as fractions.
fn raw(row: &Table2Row) -> BTreeMap<Dimension, f64> {
    Table2Row::DIMENSIONS
        .into_iter()
        .zip(row.dimensions.map(|percent| percent / 100.0))
        .collect()
}

/// Printed numbers are off by at most half a hundredth each: the total of two of them by half a hundredth again.
#[test]
fn the_total_of_every_row_of_table_2_is_four_fifths_quality() {
    let errors = TABLE_2.map(|row| {
        let [printed, quality, semantic] = row.summaries;
        (total(quality, semantic) - printed).abs()
    });
    let worst = errors.into_iter().fold(0.0, f64::max);
    assert!(worst < 0.0045, "{errors:?}");
}

/// Rows of the paper's Table 4 (as its section 4.3 tells them) and of Table 5.
#[test]
fn the_totals_of_tables_4_and_5_close_within_their_printing() {
    for (quality, semantic, printed) in [
        (83.61, 69.01, 80.69),
        (83.47, 71.84, 81.14),
        (83.91, 70.54, 81.23),
        (80.08, 69.28, 77.92),
        (74.43, 62.70, 72.09),
    ] {
        let found = total(quality, semantic);
        assert!((found - printed).abs() < 0.01, "{found} for {printed}");
    }
    assert!(
        (total(74.43, 62.70) - 72.084).abs() < 1e-9,
        "where Table 5 prints 72.09"
    );
}

/// What a group's missing dimensions must add up to for the printed score.
fn missing(row: &Table2Row, group: Group, printed: f64) -> f64 {
    let known: f64 = raw(row)
        .into_iter()
        .filter(|(dimension, _)| dimension.group() == group)
        .map(|(dimension, raw)| dimension.weight() * dimension.normalised(raw))
        .sum();
    group_weight(group) * printed / 100.0 - known
}

/// Table 2 leaves out three dimensions of quality and two of semantics. What they must add up to is possible, and is
/// what spec section 6.3 lists, in the table's order.
#[test]
fn the_columns_that_table_2_leaves_out_are_possible() {
    let listed = [
        (2.604, 1.553),
        (2.588, 1.382),
        (2.537, 1.641),
        (2.641, 1.627),
        (2.540, 1.228),
        (2.533, 1.602),
        (2.547, 1.468),
        (2.611, 1.623),
        (2.615, 1.536),
        (2.563, 1.428),
        (2.575, 1.522),
        (2.403, 1.401),
        (2.581, 1.421),
    ];
    for (row, (quality, semantic)) in TABLE_2.iter().zip(listed) {
        let [_, q, s] = row.summaries;
        let (found_q, found_s) = (missing(row, Group::Quality, q), missing(row, Group::Semantic, s));
        assert!((found_q - quality).abs() < 1e-3, "{}: {found_q}", row.model);
        assert!((found_s - semantic).abs() < 1e-3, "{}: {found_s}", row.model);
        assert!(found_q < 3.0 && found_s < 2.0, "{}", row.model);
    }
}

/// With the leaderboard's values of the left out columns, in percent (spec section 6.3), both rows' scores come out.
#[test]
fn the_leaderboards_values_give_the_printed_scores() {
    for (model, [subject, background, imaging, action, scene]) in [
        ("OpenSora V1.2", [96.75, 97.61, 63.34, 91.20, 42.44]),
        ("AnimateDiff-V2", [95.30, 97.68, 70.10, 92.60, 50.19]),
    ] {
        let row = TABLE_2.iter().find(|row| row.model == model).unwrap();
        let mut scores = raw(row);
        scores.extend([
            (SubjectConsistency, subject / 100.0),
            (BackgroundConsistency, background / 100.0),
            (ImagingQuality, imaging / 100.0),
            (HumanAction, action / 100.0),
            (Scene, scene / 100.0),
        ]);
        for (summary, printed) in Summary::ALL.into_iter().zip(row.summaries) {
            let found = 100.0 * summary.of(&scores).unwrap();
            assert!(
                (found - printed).abs() < 0.01,
                "{model}: {summary:?} {found}, printed {printed}"
            );
            let linear: f64 = summary.slopes().iter().map(|(d, slope)| slope * scores[d]).sum();
            assert!(
                (100.0 * (linear + summary.offset()) - found).abs() < 1e-9,
                "{summary:?}"
            );
        }
    }
}

#[test]
fn nothing_is_cut_off_and_nothing_is_made_up() {
    assert_eq!(MotionSmoothness.normalised(0.706), 0.0);
    assert!(MotionSmoothness.normalised(0.9995) > 1.0, "above the highest");
    assert!(TemporalFlickering.normalised(0.5) < 0.0, "below the lowest");
    let all_but_one: BTreeMap<_, _> = Dimension::ALL[1..].iter().map(|d| (*d, 0.5)).collect();
    assert_eq!(Summary::Quality.of(&all_but_one), None);
    assert_eq!(Summary::Total.of(&all_but_one), None);
    assert!(Summary::Semantic.of(&all_but_one).is_some());
    let highest: BTreeMap<_, _> = Dimension::ALL.iter().map(|d| (*d, d.range().1)).collect();
    for summary in Summary::ALL {
        assert!((summary.of(&highest).unwrap() - 1.0).abs() < 1e-12, "{summary:?}");
    }
}

#[test]
fn names_lead_to_their_dimensions() {
    for dimension in Dimension::ALL {
        assert_eq!(Dimension::named(dimension.name()), Some(dimension));
    }
    assert_eq!(Dimension::named("beauty"), None);
    assert_eq!(of(Group::Quality).count(), 7);
    assert_eq!(of(Group::Semantic).count(), 9);
    assert!((group_weight(Group::Quality) - 6.5).abs() < 1e-12);
}

#[test]
fn a_models_row_stands_below_the_papers_in_the_same_columns() {
    let scores = raw(&TABLE_2[12]);
    let (heads, rows) = table_2_cells("ours", 635_000_000, 4, &scores);
    assert!(rows.iter().all(|row| row.len() == heads.len()) && rows.len() == 14);
    assert_eq!(rows[13][..6], ["ours", "0.6", "4", "", "", ""]);
    assert_eq!(rows[13][6..], rows[12][6..], "the same scores are printed alike");
    assert_eq!(rows[0][..6], ["Kling", "", "", "81.85", "83.39", "75.68"]);

    let (heads, rows) = table_1_cells("tiny", 470_000, 25, &scores);
    assert!(rows.iter().all(|row| row.len() == heads.len()) && rows.len() == 6);
    assert_eq!(rows[5], ["tiny", "UNet", "25", "0.0005", "", "", ""]);
    let ours = TABLE_1.last().map(|row| row.total);
    assert_eq!(ours, Some(TABLE_2[12].summaries[0]), "the tables agree");
}
