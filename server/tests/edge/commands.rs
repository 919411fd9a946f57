//! Every command, as a person types it, against a coordinator that runs.

use std::{path::Path, process::Output};

use crate::cluster::{Coordinator, Folder, temponas};

const TABLE_SPACE: &str = r#"
name = "rows"
kind = "table"
positions = ["a", "b"]

[[choices]]
name = "none"
code = "0"

[[choices]]
name = "small"
code = "1"

[[choices]]
name = "large"
code = "2"

[structure]
null = "0"

[table]
key = "arch"
known = ["size"]

[[objectives]]
metric = "accuracy"
direction = "maximise"

[[objectives]]
metric = "size"
direction = "minimise"

[search]
strategy = "nsga2"
seed = 1
width = 2
max_evaluations = 6
finalists = 0

[search.nsga2]
population = 4
crossover = 0.9
"#;

const TABLE: &str = "arch,accuracy,size\n00,0.1,0\n01,0.3,1\n02,0.4,2\n10,0.35,1\n11,0.6,2\n12,0.65,3\n20,0.38,2\n\
                     21,0.66,3\n22,0.7,4\n";

/// The coordinator and its folder; commands run against it.
struct World {
    coordinator: Coordinator,
    folder: Folder,
}

impl World {
    fn new() -> Self {
        let folder = Folder::new(0o755);
        let coordinator = Coordinator::start(&folder);
        Self { coordinator, folder }
    }

    fn url(&self) -> String {
        format!("http://{}", self.coordinator.url)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = temponas();
        command.args(arguments).env("TEMPONAS_URL", self.url());
        command.output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn say(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.bytes(arguments)).unwrap()
    }

    fn bytes(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output.stdout
    }

    /// Standard error of a command that must fail.
    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    fn file(&self, name: &str, content: &str) -> String {
        text(&self.folder.file(name, content))
    }

    /// Posts JSON, for what no command does.
    fn post(&self, path: &str, body: &serde_json::Value) {
        let request = reqwest::Client::new().post(self.url() + path).json(body);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let status = runtime.block_on(async { request.send().await.unwrap().status() });
        assert!(status.is_success(), "{path}: {status}");
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap().to_owned()
}

#[test]
fn a_search_over_a_table_is_submitted_followed_and_read_in_every_form() {
    let world = World::new();
    let space = world.file("rows.toml", TABLE_SPACE);
    let table = world.file("rows.csv", TABLE);
    let estimate = world.say(&["submit", &space, "--table", &table, "--dry-run"]);
    assert!(
        estimate.contains("architectures in the space") && estimate.contains(" 9\n"),
        "{estimate}"
    );

    let submitted = world.say(&["submit", &space, "--table", &table, "--watch"]);
    let id = first_line(&submitted);
    assert!(submitted.contains("done: 6 of 6 evaluations"), "{submitted}");
    let list = world.say(&["list"]);
    assert!(
        list.contains(&id) && list.contains("rows") && list.contains("done"),
        "{list}"
    );
    let end = &id[id.len() - 8..];
    assert!(world.say(&["watch", end]).contains("done"), "by the end of its id");

    let front = world.say(&["front", &id]);
    assert!(front.contains("accuracy") && front.contains("size"), "{front}");
    let csv = world.say(&["front", &id, "--format", "csv"]);
    assert!(
        csv.lines().count() >= 3 && csv.lines().next().unwrap().contains("accuracy"),
        "{csv}"
    );
    let json: serde_json::Value = serde_json::from_str(&world.say(&["front", &id, "--format", "json"])).unwrap();
    assert_eq!(json["points"].as_array().unwrap().len(), csv.lines().count() - 1);
    assert!(world.say(&["front", &id, "--format", "svg"]).contains("<svg"));
    assert!(world.bytes(&["front", &id, "--format", "png"]).starts_with(b"\x89PNG"));
    let picture = world.folder.data().join("front.png");
    world.say(&["front", &id, "--format", "png", "--output", &text(&picture)]);
    assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG"));

    let recommended = world.say(&["recommend", &id]);
    assert!(recommended.contains("spent: 6 of 6 evaluations"), "{recommended}");
    let jobs = world.say(&["jobs", &id]);
    assert_eq!(jobs.matches("lookup").count(), 6, "{jobs}");
    assert!(!world.say(&["jobs", &id, "--state", "failed"]).contains("lookup"));
    let job = jobs.lines().find(|line| line.contains("lookup")).unwrap();
    let job = job.split_whitespace().next().unwrap();
    let shown = world.say(&["job", job, "--logs"]);
    assert!(shown.contains("attempt 1") && shown.contains(&id), "{shown}");
    assert!(
        !world.say(&["lut", "list"]).contains("coordinator"),
        "where look-ups run is no device"
    );
    assert!(world.refusal(&["front", "nowhere"]).contains("no search"));
}

/// Trained parts of the space's dataset: a manifest and the one file that it names.
fn parts(world: &World) -> String {
    let folder = world.folder.data().join("assets");
    std::fs::create_dir_all(folder.join("shapes")).unwrap();
    // FIPS 180-2, appendix B.1.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let manifest = format!("{{\"files\": {{\"vae.safetensors\": {{\"sha256\": \"{digest}\"}}}}}}");
    std::fs::write(folder.join("shapes/manifest.json"), manifest).unwrap();
    std::fs::write(folder.join("shapes/vae.safetensors"), "abc").unwrap();
    text(&folder)
}

#[test]
fn jobs_are_asked_for_by_themselves_shown_and_cancelled() {
    let world = World::new();
    let shapes = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");
    let space = world.file("shapes.toml", shapes);
    let (recipe, weights) = (
        world.file("recipe.toml", "steps = 1"),
        world.file("model.safetensors", "weights"),
    );
    let assets = parts(&world);

    let asked = [
        "encode",
        "films",
        "--parts",
        "shapes",
        "--assets",
        &assets,
        "--bucket",
        "16x64x64@8",
    ];
    let encode = first_line(&world.say(&asked));
    let prune = [
        "prune", &space, "--recipe", &recipe, "--assets", &assets, "--ranks", "2",
    ];
    let prune = first_line(&world.say(&prune));
    let named = world.file("named.toml", &categorical());
    let evaluate = [
        "evaluate",
        &named,
        "--weights",
        &weights,
        "--dimensions",
        "color,object_class",
    ];
    let scored = [&evaluate[..], &["--architecture", "00"]].concat();
    let scored = first_line(&world.say(&scored));
    let wrong = world.refusal(&[&evaluate[..], &["--architecture", "no such"]].concat());
    assert!(wrong.contains("input.architecture"), "{wrong}");

    let all = world.say(&["jobs"]);
    for (id, kind) in [
        (&encode, "encode_latents"),
        (&prune, "prune_backbone"),
        (&scored, "benchmark"),
    ] {
        assert!(all.contains(id.as_str()) && all.contains(kind), "{all}");
        let of_kind = world.say(&["jobs", "--kind", kind]);
        assert_eq!(of_kind.matches("queued").count(), 1, "{of_kind}");
    }
    let shown = world.say(&["job", &prune]);
    assert!(shown.contains("2, of which 0 are there"), "{shown}");
    for _ in 0..2 {
        assert!(world.say(&["cancel-job", &prune]).contains("cancelled"));
    }
    let waiting = world.say(&["jobs", "--state", "queued"]);
    assert!(!waiting.contains(&prune) && waiting.contains(&encode), "{waiting}");
    assert!(
        world
            .refusal(&["cancel-job", "018f0000-0000-7000-8000-000000000000"])
            .contains("no job")
    );
    assert!(
        world
            .refusal(&["encode", "films", "--parts", "x", "--bucket", "16"])
            .contains("write it like")
    );
}

/// The rows' positions as a space that somebody has to evaluate.
fn categorical() -> String {
    TABLE_SPACE
        .replace("kind = \"table\"", "kind = \"categorical\"")
        .replace("[table]\nkey = \"arch\"\nknown = [\"size\"]\n", "")
        .replace("direction = \"maximise\"", "direction = \"maximise\"\nrange = [0, 1]")
        .replace("direction = \"minimise\"", "direction = \"minimise\"\nrange = [0, 4]")
}

#[test]
fn a_search_is_paused_resumed_and_cancelled() {
    let world = World::new();
    let space = world.file("named.toml", &categorical());
    let id = first_line(&world.say(&["submit", &space, "--name", "by hand", "--seed", "7"]));
    assert!(world.say(&["list"]).contains("by hand"));
    assert!(
        world.say(&["jobs", "--state", "queued"]).contains("evaluate"),
        "nobody evaluates"
    );
    assert!(world.say(&["pause", &id]).contains("is paused"));
    assert!(
        world.say(&["pause", &id]).contains("is paused"),
        "once more changes nothing"
    );
    assert!(world.say(&["resume", &id]).contains("is searching"));
    assert!(world.say(&["cancel", &id]).contains("is cancelled"));
    assert!(
        world.say(&["watch", &id]).contains("cancelled"),
        "what has ended is shown at once"
    );
    assert!(world.refusal(&["resume", &id]).contains("cancelled"));

    let wrong = world.file("wrong.toml", &TABLE_SPACE.replace("nsga2", "guess"));
    let refusal = world.refusal(&["submit", &wrong]);
    assert!(
        refusal.contains("line ") && refusal.contains("search.strategy"),
        "{refusal}"
    );
}

/// Conv1D at three sizes whose latency is linear in its work, and one that ran out of memory.
fn lut_csv() -> String {
    let mut rows = "device,runtime,version,dtype,operator,shape,state,detail,latency_ms,peak_memory_bytes\n".to_owned();
    for (size, latency) in [(4, 1.0), (8, 4.0), (16, 16.0)] {
        let shape = conv1d(size).replace(',', " ");
        rows += &format!(
            "x,rt,1,f32,conv1d,{shape},measured,,{latency} {latency} {latency},{0} {0}\n",
            latency * 1e6
        );
    }
    rows + &format!(
        "x,rt,1,f32,conv3d,{},out_of_memory,too large,,\n",
        conv1d(16).replace(',', " ")
    )
}

fn conv1d(size: u32) -> String {
    format!("b=1,c=32,groups=8,h={size},t=12,w={size}")
}

#[test]
fn a_table_is_imported_shown_asked_and_extended() {
    let world = World::new();
    world.post(
        "/v1/devices",
        &serde_json::json!({ "name": "x", "description": "a board" }),
    );
    let table = world.file("lut.csv", &lut_csv());
    assert!(
        world
            .say(&["lut", "import", "x", &table])
            .contains("is in the table of x")
    );
    assert!(world.say(&["lut", "list"]).contains("rt@1"));
    let entries = world.say(&["lut", "list", "x", "--operator", "conv3d"]);
    assert!(
        entries.contains("out_of_memory: too large") && !entries.contains("conv1d"),
        "{entries}"
    );
    let shown = world.say(&["lut", "show", "x"]);
    assert!(
        shown.contains("rt@1, f32: 3 measured, 1 out of memory, 0 unsupported"),
        "{shown}"
    );
    assert!(
        shown.contains("conv1d") && shown.contains("h w"),
        "the one between the two others: {shown}"
    );
    let exported = world.say(&["lut", "export", "x"]);
    assert_eq!(exported.lines().count(), 5, "{exported}");
    let exported = world.say(&["lut", "export", "x", "--format", "json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&exported).is_ok());

    let ask = |size: u32, more: &[&str]| {
        let shape = conv1d(size);
        let mut arguments = vec!["lut", "estimate", "x", "conv1d", &shape];
        arguments.extend(more);
        world.say(&arguments)
    };
    assert!(ask(8, &[]).contains("measured"));
    let between = ask(12, &["--runtime", "rt@1"]);
    assert!(
        between.contains("interpolated") && between.contains("9.000 ms"),
        "{between}"
    );
    let beyond = ask(32, &[]);
    assert!(
        beyond.contains("not known") && beyond.contains("extrapolation was not asked for"),
        "{beyond}"
    );
    let beyond = ask(32, &["--extrapolate"]);
    assert!(
        beyond.contains("extrapolated") && beyond.contains("64.00 ms"),
        "{beyond}"
    );

    let plot = world.say(&["lut", "plot", "x", "--runtime", "rt@1", "--space", "shapes-tiny"]);
    assert!(plot.contains("<svg"));
    let refusal = world.refusal(&["lut", "plot", "x", "--runtime", "rt"]);
    assert!(refusal.contains("libtorch-cpu-1t@2.11.0"), "{refusal}");

    let figure = [
        "lut",
        "profile",
        "x",
        "--figure3",
        "--space",
        "shapes-tiny",
        "--sizes",
        "4,8,16",
    ];
    let asked = world.say(&figure);
    assert!(asked.starts_with("14 blocks to measure in 2 jobs"), "{asked}");
    assert!(asked.contains("4 are in the table, 0 wait already"), "{asked}");
    let again = world.say(&figure);
    assert!(
        again.starts_with("0 blocks to measure in 0 jobs") && again.contains("14 wait already"),
        "{again}"
    );
    assert_eq!(world.say(&["jobs", "--state", "queued"]).matches("profile").count(), 2);
    let job = asked.lines().nth(1).unwrap();
    assert!(world.say(&["job", job]).contains("search     none"));
    assert!(world.refusal(&["lut", "profile", "y"]).contains("device y"));

    let space = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    let estimate = world.say(&["submit", space, "--device", "x", "--dry-run"]);
    for part in ["profiling", "training", "sampling", "verification"] {
        assert!(estimate.contains(part), "{part}: {estimate}");
    }
    assert!(
        estimate.contains("assumed: 10 GMAC/s as of a processor core"),
        "{estimate}"
    );
}

#[test]
fn tokens_are_made_used_and_revoked() {
    let world = World::new();
    let data = text(&world.folder.data());
    let token = |arguments: &[&str]| {
        let mut all = vec!["token"];
        all.extend(arguments);
        all.extend(["--data-dir", &data]);
        world.say(&all)
    };
    let secret = token(&["create", "--role", "viewer", "--name", "reader", "--expires", "1d"]);
    let secret = secret.trim();
    let with_token = |arguments: &[&str]| {
        let mut command = temponas();
        command
            .args(arguments)
            .args(["--token", secret])
            .env("TEMPONAS_URL", world.url());
        command.output().unwrap()
    };
    assert!(with_token(&["list"]).status.success());
    let space = world.file("rows.toml", TABLE_SPACE);
    let refused = with_token(&["submit", &space, "--device", "x"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("viewer"),
        "{refused:?}"
    );
    let listed = token(&["list"]);
    let id = listed.lines().find(|line| line.contains("reader")).unwrap();
    token(&["revoke", id.split_whitespace().next().unwrap()]);
    let refused = with_token(&["list"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("revoked"),
        "{refused:?}"
    );
}
