//! What a wrong space file is told.

use proptest::prelude::*;
use search_spaces::Space;

const SHIPPED: [&str; 4] = [
    include_str!("../spaces/shapes-tiny.toml"),
    include_str!("../spaces/snapgen-v.toml"),
    include_str!("../spaces/nas-bench-201.toml"),
    include_str!("../spaces/nas-bench-macro.toml"),
];

fn problems(toml: &str) -> String {
    Space::parse(toml).expect_err("a wrong file").to_string()
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let wrong = r#"
name = "Tiny Space"
kind = "temporal-unet"
colour = "red"

[unet]
latent_channels = 4
frames = 5
height = 9
width = 8
channels = [32, 60]
layers_per_block = 1
attention = [true]
heads = 4
text_tokens = 8
text_width = 32
norm_groups = 8
dtype = "f64"

[operators]
kinds = ["conv1d", "conv2d", "conv1d"]
depths = [0]

[[objectives]]
metric = "quality"
direction = "up"

[[objectives]]
metric = "beauty"
direction = "maximise"
range = [1, 1]

[limits]
quality = 3
latency_ms = "fast"

[search]
strategy = "annealing"
width = 0

[evaluation]
dataset = "shapes"
steps = 400
batch = 8
prompts = 24
videos_per_prompt = 2
checkpoint_every = 100
guidance = -1
dimensions = { taste = 1 }
"#;
    insta::assert_snapshot!(problems(wrong));
}

#[test]
fn a_wrong_table_space_names_codes_and_positions() {
    let wrong = r#"
name = "cells"
kind = "table"
positions = ["a", { name = "b", choices = ["0", "7"] }, "a"]
choices = [{ name = "none", code = "0" }, { name = "more", code = "1" }, { name = "again", code = "1" }]
objectives = [{ metric = "error", direction = "minimise" }, { metric = "error", direction = "minimise" }]
table = { key = 3 }
structure = { null = "x", edges = [[0, 1], [2, 1]] }
references = [{ name = "r", architecture = "000" }]
search = { max_evaluations = 10 }
unet = {}
"#;
    insta::assert_snapshot!(problems(wrong));
}

#[test]
fn architectures_and_starts_are_checked_against_the_positions() {
    let wrong = SHIPPED[0]
        .replace("\"-.-.-.-.-\"", "\"-.-.-.-\"")
        .replace("\"s3.s3.s3.s3.s3\"", "\"s3.s4.s3.s3.s3\"")
        .replace("start = \"backbone\"", "start = \"everything\"");
    insta::assert_snapshot!(problems(&wrong));
}

#[test]
fn actions_need_one_maximised_objective_and_a_backbone_to_start_from() {
    let wrong = SHIPPED[3].replace("direction = \"maximise\"", "direction = \"minimise\"");
    assert!(
        problems(&wrong).contains("exactly one maximised objective"),
        "{}",
        problems(&wrong)
    );
    let wrong = SHIPPED[3]
        .replace("null = \"0\"\n", "")
        .replace("\"filled\"", "\"backbone\"");
    assert!(problems(&wrong).contains("null choice"), "{}", problems(&wrong));
}

#[test]
fn the_papers_mode_takes_neither_inherited_weights_nor_a_part_of_its_actions() {
    let paper = SHIPPED[0].replace("mode = \"front\"", "mode = \"paper\"");
    let wrong = paper.replace("inherit = false", "inherit = true");
    let line = |text: &str| 1 + wrong.lines().position(|line| line.starts_with(text)).expect("a line");
    let found = problems(&wrong);
    assert!(
        found.contains(&format!(
            "line {}, column 11: evaluation.inherit: found true",
            line("inherit = ")
        )),
        "{found}"
    );
    assert!(
        found.contains(&format!(
            "line {}, column 9: search.actions.tries: found 4",
            line("tries = ")
        )),
        "{found}"
    );
    assert!(Space::parse(&paper.replace("tries = 4\n", "")).is_ok());
    assert!(Space::parse(&SHIPPED[0].replace("inherit = false", "inherit = true")).is_ok());
}

#[test]
fn a_search_has_evaluations_left_once_its_references_are_done() {
    let references = SHIPPED[0].matches("[[references]]").count();
    let with = |count: usize| SHIPPED[0].replace("max_evaluations = 18", &format!("max_evaluations = {count}"));
    let found = problems(&with(references));
    assert!(
        found.contains("search.max_evaluations: found 4; allowed: at least 5"),
        "{found}"
    );
    assert!(Space::parse(&with(references + 1)).is_ok());
}

#[test]
fn only_a_temporal_unet_is_trained_here() {
    let section = &SHIPPED[0][SHIPPED[0].find("[evaluation]").expect("a section")..];
    let section = section.split("\n\n").next().expect("its lines");
    let found = problems(&format!("{}\n{section}\n", SHIPPED[3]));
    assert!(found.contains("evaluation: found a section"), "{found}");
}

#[test]
fn the_whole_pipeline_is_limited_only_where_it_is_described() {
    let wrong = SHIPPED[1].replace("[pipeline]\nsteps = 4\nguidance = false\n", "");
    assert!(
        problems(&wrong).contains("limits.pipeline_latency_ms"),
        "{}",
        problems(&wrong)
    );
}

#[test]
fn broken_toml_is_reported_where_it_breaks() {
    insta::assert_snapshot!(problems("name = \"a\"\nkind = = 3\n[search\n"));
    assert!(problems(&"#".repeat((1 << 20) + 1)).contains("at most 1048576 bytes"));
    assert!(problems("").contains("name: found nothing"));
}

#[test]
fn of_endless_problems_the_first_are_listed_and_the_others_counted() {
    use std::time::{Duration, Instant};
    let unknown = |separator: &str| -> String { (0..20_000).map(|i| format!("k{i} = 1{separator}")).collect() };
    for wrong in [
        format!("{}\n{}", unknown("\n"), SHIPPED[0]),
        format!("{}\nodd = {{ {} z = 1 }}\n", SHIPPED[0], unknown(", ")),
        "= \n".repeat(20_000),
    ] {
        let started = Instant::now();
        let problems = Space::parse(&wrong).expect_err("a wrong file").0;
        assert!(problems.len() <= 101, "{} are listed", problems.len());
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    let problems = Space::parse(&format!("{}\n{}", unknown("\n"), SHIPPED[0]))
        .expect_err("wrong")
        .0;
    assert_eq!((problems[99].line, problems[99].field.as_str()), (100, "k99"));
    assert_eq!(problems[100].found, "19900 more problems");
}

#[test]
fn a_position_may_have_fewer_operators_and_depths_of_its_own() {
    let own = format!(
        "{}\n[[positions]]\nname = \"down.0\"\nkinds = [\"conv1d\"]\ndepths = [1, 2]\n",
        SHIPPED[0]
    );
    let space = Space::parse(&own).unwrap_err().to_string();
    // The references stand at positions that no longer have their choices.
    assert!(
        space.contains("found `\"s1.s1.s1.s1.s1\"`; allowed: at down.0 one of -, c1, c1x2"),
        "{space}"
    );
}

/// Characters that mean something in TOML, and some that do not.
const NOISE: &str = "[\\[\\]{}=\".,#'\\n 0-9a-z_-]{0,12}|\\PC{0,4}";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}|[\\[\\]{}=\".,#\\n a-z0-9-]{0,200}") {
        let _ = Space::parse(&text);
    }

    /// A shipped file with a piece replaced is read or refused with places inside the text.
    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(file in 0_usize..4, at in 0.0..1.0_f64, length in 0_usize..40, noise in NOISE) {
        let file = SHIPPED[file];
        let boundary = |i: usize| (0..=i.min(file.len())).rev().find(|i| file.is_char_boundary(*i)).unwrap_or(0);
        let start = boundary((at * file.len() as f64) as usize);
        let damaged = format!("{}{noise}{}", &file[..start], &file[boundary(start + length)..]);
        if let Err(error) = Space::parse(&damaged) {
            prop_assert!(!error.0.is_empty());
            for problem in error.0 {
                prop_assert!((1..=damaged.matches('\n').count() + 1).contains(&problem.line));
                prop_assert!(problem.column >= 1 && !problem.allowed.is_empty() && !problem.found.is_empty());
            }
        }
    }

    /// The same with one value replaced, so that the file stays TOML and its meaning is what is wrong.
    #[test]
    fn no_wrong_value_makes_it_panic(file in 0_usize..4, line in any::<prop::sample::Index>(), value in prop::sample::select(vec![
        "0", "-1", "1.5", "nan", "inf", "9223372036854775807", "99999999999999999999", "\"\"", "\"é\"", "[]", "{}", "true", "[[]]", "[0, 255]", "1979-05-27",
    ])) {
        let lines: Vec<&str> = SHIPPED[file].lines().collect();
        let assignments: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(" = ") && !lines[i].ends_with('[')).collect();
        let chosen = assignments[line.index(assignments.len())];
        let key = lines[chosen].split(" = ").next().unwrap_or_default();
        let changed = format!("{key} = {value}");
        let text: Vec<&str> = lines.iter().enumerate().map(|(i, line)| if i == chosen { changed.as_str() } else { line }).collect();
        if let Ok(space) = Space::parse(&text.join("\n")) {
            // What was accepted can be worked with.
            let _ = (space.size(), space.blocks(), space.backbone().map(|a| space.print(&a)));
        }
    }
}
