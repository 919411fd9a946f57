//! What submission takes and refuses.

use protocol::{
    artifacts::{ArtifactRef, ArtifactRole},
    devices::RuntimeName,
    jobs::{JobInput, JobKind},
    searches::{NewSearch, SearchEstimate},
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    search::{self, SearchError},
};

use crate::harness::{Harness, NAMED, SHAPES, new_search, table_space};

fn field(result: Result<protocol::SearchId, SearchError>) -> String {
    match result.unwrap_err() {
        SearchError::Invalid { field, .. } => field.into_owned(),
        other => panic!("{other}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wrong_space_is_refused_with_line_column_and_field(pool: PgPool) {
    let t = Harness::new(pool);
    let wrong = NAMED
        .replace("width = 4", "width = \"many\"")
        .replace("direction = \"minimise\"", "direction = \"down\"");
    let Err(SearchError::Space(problems)) = t.try_submit(&new_search(&wrong)).await else {
        panic!("it must be refused")
    };
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert!(
        fields.iter().any(|field| field.contains("width")) && fields.iter().any(|field| field.contains("direction"))
    );
    let line_of = |text: &str| {
        wrong
            .lines()
            .position(|line| line.contains(text))
            .map(|line| line as u32 + 1)
    };
    assert!(
        problems.iter().any(|problem| problem.line == line_of("\"many\"")),
        "{problems:?}"
    );
    assert!(problems.iter().all(|problem| problem.column.is_some()));
    assert!(
        t.app.store.search_ids(None, None, 10).await.unwrap().is_empty(),
        "nothing is stored"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn device_runtime_and_table_are_checked(pool: PgPool) {
    let t = Harness::new(pool);
    let shapes = new_search(SHAPES);
    assert_eq!(field(t.try_submit(&shapes).await), "device");
    let elsewhere = NewSearch {
        device: Some("nowhere".to_owned()),
        ..shapes.clone()
    };
    assert_eq!(field(t.try_submit(&elsewhere).await), "device");
    t.worker("x").await;
    let here = NewSearch {
        device: Some("x".to_owned()),
        ..shapes
    };
    let id = t.try_submit(&here).await.unwrap();
    assert_eq!(
        t.search(id).await.runtime(),
        Some(crate::harness::runtime()),
        "the only one it has"
    );
    let other = RuntimeName {
        name: "coreml".to_owned(),
        version: "18".to_owned(),
    };
    let upload = protocol::luts::SampleUpload {
        batch_id: uuid::Uuid::now_v7(),
        runtime: other.clone(),
        entries: Vec::new(),
    };
    store_batch(&t, "x", &upload).await;
    assert_eq!(field(t.try_submit(&here).await), "runtime", "there are two");
    assert!(
        t.try_submit(&NewSearch {
            runtime: Some(other),
            ..here
        })
        .await
        .is_ok()
    );
    let nowhere = NewSearch {
        runtime: Some(crate::harness::runtime()),
        ..new_search(NAMED)
    };
    assert_eq!(field(t.try_submit(&nowhere).await), "runtime", "it runs on no device");
    assert_eq!(field(t.try_submit(&new_search(&table_space())).await), "table");
    let absent = NewSearch {
        table: Some("a".repeat(64).parse().unwrap()),
        ..new_search(&table_space())
    };
    assert_eq!(field(t.try_submit(&absent).await), "table");
    let wrong = NewSearch {
        table: Some(t.upload(b"arch,accuracy\n000,1\n").await),
        ..new_search(&table_space())
    };
    assert_eq!(field(t.try_submit(&wrong).await), "table", "a column is missing");
    let needless = NewSearch {
        table: Some(t.upload(b"x").await),
        ..new_search(NAMED)
    };
    assert_eq!(field(t.try_submit(&needless).await), "table");
}

async fn store_batch(t: &Harness, device: &str, upload: &protocol::luts::SampleUpload) {
    use temponas_server::store::luts::{Batch, insert_batch};
    let now = t.app.clock.now();
    let mut tx = t.app.store.begin().await.unwrap();
    let batch = Batch {
        id: upload.batch_id,
        device,
        runtime: &upload.runtime,
        digest: "x",
        entries: &[],
    };
    insert_batch(tx.connection(), &batch, now).await.unwrap();
    tx.commit(now).await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_makes_one_search_however_often_it_is_sent(pool: PgPool) {
    let t = Harness::new(pool);
    let new = new_search(NAMED);
    let first = search::submit(&t.app, &new, Some("k")).await.unwrap();
    assert!(first.fresh);
    let sent = (0..6).map(|_| search::submit(&t.app, &new, Some("k")));
    for again in futures::future::join_all(sent).await {
        let again = again.unwrap();
        assert_eq!((again.id, again.fresh), (first.id, false));
    }
    let other = NewSearch {
        seed: Some(9),
        ..new.clone()
    };
    assert!(matches!(
        search::submit(&t.app, &other, Some("k")).await,
        Err(SearchError::KeyReused(_))
    ));
    let at_once = (0..6).map(|_| search::submit(&t.app, &new, Some("race")));
    let made = futures::future::join_all(at_once).await;
    assert_eq!(made.iter().filter(|made| made.as_ref().unwrap().fresh).count(), 1);
    assert_eq!(t.app.store.search_ids(None, None, 100).await.unwrap().len(), 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_was_accepted_once_is_not_checked_again(pool: PgPool) {
    let t = Harness::new(pool);
    t.worker("x").await;
    let new = NewSearch {
        device: Some("x".to_owned()),
        ..new_search(SHAPES)
    };
    let first = search::submit(&t.app, &new, Some("k")).await.unwrap();
    // A second runtime turns up: the same submission would now have to name one.
    let upload = protocol::luts::SampleUpload {
        batch_id: uuid::Uuid::now_v7(),
        runtime: RuntimeName {
            name: "coreml".to_owned(),
            version: "18".to_owned(),
        },
        entries: Vec::new(),
    };
    store_batch(&t, "x", &upload).await;
    assert_eq!(field(t.try_submit(&new).await), "runtime");
    let again = search::submit(&t.app, &new, Some("k")).await.unwrap();
    assert_eq!((again.id, again.fresh), (first.id, false));
    let wrong = new_search("no space");
    let reused = search::submit(&t.app, &wrong, Some("k")).await.unwrap_err();
    assert!(matches!(reused, SearchError::KeyReused(_)), "{reused}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_dry_run_estimates_from_earlier_evaluations_and_stores_nothing(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("x").await;
    let new = NewSearch {
        device: Some("x".to_owned()),
        ..new_search(SHAPES)
    };
    let before = search::estimate(&t.app, &new).await.unwrap();
    assert!(before.blocks_to_profile > 10 && before.seconds_per_evaluation.is_none());
    let names =
        |estimate: &SearchEstimate| -> Vec<String> { estimate.parts.iter().map(|part| part.part.clone()).collect() };
    assert_eq!(names(&before), ["profiling", "training", "sampling", "verification"]);
    for part in &before.parts {
        assert!(!part.measured && part.basis.contains("assumed: 10 GMAC/s"), "{part:?}");
        assert!(part.seconds > 0.0, "{part:?}");
    }
    assert!(before.wall_hours.unwrap() > 0.0, "one worker evaluates");
    assert!(before.wall_hours <= before.device_hours);
    assert!(t.app.store.search_ids(None, None, 10).await.unwrap().is_empty());
    let profiler = t.worker_on("x", &[JobKind::Profile]).await;
    t.try_submit(&new).await.unwrap();
    t.work_off(profiler).await;
    let with_table = search::estimate(&t.app, &new).await.unwrap();
    assert_eq!(names(&with_table), ["training", "sampling", "verification"]);
    assert!(with_table.parts[0].basis.contains("ms a pass by this device's table"));
    for _ in 0..3 {
        let job = t.claim(worker).await.unwrap();
        t.finish(&job).await;
    }
    let after = search::estimate(&t.app, &new).await.unwrap();
    assert_eq!(after.blocks_to_profile, 0);
    assert_eq!(after.seconds_per_evaluation.unwrap().value, 3.5);
    assert_eq!(names(&after), ["evaluations", "verification"]);
    assert!(after.parts[0].measured && after.parts[1].measured);
    assert_eq!(after.parts[0].seconds, 3.5 * after.max_evaluations as f64);
}

async fn base_file(t: &Harness, name: &str, bytes: &[u8]) -> ArtifactRef {
    ArtifactRef {
        role: ArtifactRole::Base,
        digest: t.upload(bytes).await,
        name: name.to_owned(),
        media_type: "application/octet-stream".to_owned(),
        bytes: bytes.len() as u64,
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_evaluation_is_given_the_files_that_the_submission_names(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let base = vec![
        base_file(&t, "manifest.json", b"{}").await,
        base_file(&t, "vae.safetensors", b"weights").await,
    ];
    let new = NewSearch {
        base: base.clone(),
        ..new_search(NAMED)
    };
    let id = t.try_submit(&new).await.unwrap();
    assert_eq!(t.search(id).await.base.0, base);
    let mut given = 0;
    while let Some(job) = t.claim(worker).await {
        let JobInput::Evaluate(input) = &job.input else {
            panic!("{:?}", job.input)
        };
        assert_eq!(input.base, base);
        given += 1;
        t.finish(&job).await;
    }
    assert_eq!(given, 20, "the first ones and those proposed from results");

    t.submit(NAMED).await;
    let JobInput::Evaluate(input) = t.claim(worker).await.unwrap().input else {
        panic!("no evaluation")
    };
    assert!(input.base.is_empty(), "the worker uses what it ships");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn files_to_start_from_must_be_there_and_fit_into_one_folder(pool: PgPool) {
    let t = Harness::new(pool);
    let good = base_file(&t, "manifest.json", b"{}").await;
    let with = |file: ArtifactRef| NewSearch {
        base: vec![good.clone(), file],
        ..new_search(NAMED)
    };
    let absent = ArtifactRef {
        digest: "a".repeat(64).parse().unwrap(),
        name: "vae.safetensors".to_owned(),
        ..good.clone()
    };
    let SearchError::Invalid { field: at, message } = t.try_submit(&with(absent.clone())).await.unwrap_err() else {
        panic!("it must be refused")
    };
    assert_eq!(at, "base[1].digest");
    assert!(
        message.contains(absent.digest.as_str()) && message.contains("upload"),
        "{message}"
    );
    assert_eq!(
        field(t.try_submit(&with(good.clone())).await),
        "base[1].name",
        "it stands twice"
    );
    for name in [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a/",
        "a\\b",
        "a\0b",
        &"x".repeat(201),
    ] {
        let named = ArtifactRef {
            name: name.to_owned(),
            ..good.clone()
        };
        assert_eq!(field(t.try_submit(&with(named)).await), "base[1].name", "{name:?}");
    }
    let longer = ArtifactRef {
        name: "x".to_owned(),
        bytes: 3,
        ..good.clone()
    };
    assert_eq!(field(t.try_submit(&with(longer)).await), "base[1].bytes");
    let many = NewSearch {
        base: vec![good.clone(); 1025],
        ..new_search(NAMED)
    };
    assert_eq!(field(t.try_submit(&many).await), "base");
    let table = NewSearch {
        table: Some(t.upload(crate::harness::table().as_bytes()).await),
        base: vec![good.clone()],
        ..new_search(&table_space())
    };
    assert_eq!(field(t.try_submit(&table).await), "base", "nobody would read it");
    assert!(t.app.store.search_ids(None, None, 10).await.unwrap().is_empty());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_stands_for_the_files_too(pool: PgPool) {
    let t = Harness::new(pool);
    let new = NewSearch {
        base: vec![base_file(&t, "manifest.json", b"{}").await],
        ..new_search(NAMED)
    };
    let first = search::submit(&t.app, &new, Some("k")).await.unwrap();
    let again = search::submit(&t.app, &new, Some("k")).await.unwrap();
    assert_eq!((again.id, again.fresh), (first.id, false));
    let other = NewSearch {
        base: vec![base_file(&t, "manifest.json", b"{ }").await],
        ..new.clone()
    };
    for other in [other, new_search(NAMED)] {
        let refused = search::submit(&t.app, &other, Some("k")).await.unwrap_err();
        assert!(matches!(refused, SearchError::KeyReused(_)), "{refused}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_search_is_called_as_asked_else_by_title_else_by_the_spaces_name(pool: PgPool) {
    let t = Harness::new(pool);
    let untitled = NAMED.replace("title = \"Three named positions\"\n", "");
    let asked = NewSearch {
        name: Some("mine".to_owned()),
        ..new_search(NAMED)
    };
    for (new, name) in [
        (asked, "mine"),
        (new_search(NAMED), "Three named positions"),
        (new_search(&untitled), "named"),
    ] {
        let id = t.try_submit(&new).await.unwrap();
        assert_eq!(t.search(id).await.name, name);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn where_only_look_ups_run_there_is_no_device(pool: PgPool) {
    let t = Harness::new(pool);
    t.worker_on("coordinator", &[JobKind::Lookup]).await;
    t.worker_on("x", &[JobKind::Profile]).await;
    let devices = t.app.store.devices(None, None, 10).await.unwrap();
    let names: Vec<&str> = devices.iter().map(|view| view.device.name.as_str()).collect();
    assert_eq!(names, ["x"]);
}
