use std::collections::HashMap;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use search_spaces::Evaluation;

use super::*;
use crate::data::sharded::{Plan, Settings};
use crate::models::seeded::{normal, seed_weights};
use crate::scoring::{ScoringError, sampling, score};
use crate::weights::save_tensors;

const SPACE: &str = include_str!("../../../../search-spaces/spaces/shapes-tiny.toml");
const SIZES: &str = "
[text]
tokens = 8
width = 32
heads = 2
layers = 1
[vae.spatial]
block_out_channels = [4, 4, 8, 8]
layers_per_block = 1
norm_groups = 2
latent_channels = 4
[vae.temporal]
filters = 4
channel_multipliers = [1, 1, 2, 2]
res_blocks = 1
norm_groups = 2
";
/// Where CLIP is of other sizes too.
const CLIP_SIZES: &str = "
[clip.image]
image = 16
patch = 8
width = 8
heads = 2
layers = 1
projection = 6
[clip.text]
tokens = 8
width = 12
heads = 2
layers = 1
";
const MERGES: &str = "#version: 0.2\nc a\nca t</w>\n";

/// Files as a user has them, of the smallest models.
struct User(tempfile::TempDir);

impl User {
    fn new() -> Self {
        let user = Self(tempfile::tempdir().unwrap());
        let write = |name: &str, text: &str| std::fs::write(user.path(name), text).unwrap();
        write("space.toml", SPACE);
        write("sizes.toml", SIZES);
        let mut packed = flate2::write::GzEncoder::new(
            std::fs::File::create(user.path("bpe.txt.gz")).unwrap(),
            flate2::Compression::fast(),
        );
        std::io::Write::write_all(&mut packed, MERGES.as_bytes()).unwrap();
        packed.finish().unwrap();
        for (name, vs) in user.models() {
            save_tensors(user.as_published(name, &vs), &user.path(name)).unwrap();
        }
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args(&self) -> ImportArgs {
        ImportArgs {
            name: "mine".to_owned(),
            unet: self.path("unet"),
            text: self.path("text"),
            tokenizer: self.path("bpe.txt.gz"),
            vae: self.path("vae"),
            space: Some(self.path("space.toml")),
            sizes: Some(self.path("sizes.toml")),
            out: self.path("assets"),
            clip: None,
            aesthetic: None,
            pictures: false,
            copy: false,
        }
    }

    fn models(&self) -> [(&'static str, nn::VarStore); 3] {
        let recipe = recipe(&self.args()).unwrap();
        let seeded = |build: &dyn Fn(&nn::VarStore)| {
            let vs = nn::VarStore::new(Device::Cpu);
            build(&vs);
            seed_weights(&vs, 5);
            vs
        };
        [
            ("unet", seeded(&|vs| drop(UNet::new(&vs.root(), &recipe.backbone, &[])))),
            // Two merges: 256 + 256 + 2 + 2 tokens.
            (
                "text",
                seeded(&|vs| drop(TextEncoder::new(&vs.root(), &recipe.text, 516))),
            ),
            ("vae", seeded(&|vs| drop(Vae::new(&vs.root(), &recipe.vae)))),
        ]
    }

    /// The UNet behind a prefix, the VAE with its old names.
    fn as_published(&self, name: &str, vs: &nn::VarStore) -> HashMap<String, Tensor> {
        let renamed = |key: String| match name {
            "unet" => format!("unet.{key}"),
            "vae" if key.contains("attentions.0.") => key
                .replace("to_q", "query")
                .replace("to_k", "key")
                .replace("to_v", "value")
                .replace("to_out.0", "proj_attn"),
            _ => key,
        };
        vs.variables()
            .into_iter()
            .map(|(key, tensor)| (renamed(key), tensor))
            .collect()
    }

    /// What importing says, which must leave nothing behind.
    fn refusal(&self) -> String {
        let error = import(&self.args()).unwrap_err().to_string();
        assert!(!self.path("assets").exists(), "{error}");
        error
    }
}

#[test]
fn published_weights_become_parts_that_open() {
    let user = User::new();
    let (folder, manifest) = import(&user.args()).unwrap();
    assert_eq!(folder, user.path("assets").join("mine"));
    let parts = Assets::open(&user.path("assets"), "mine", Device::Cpu).unwrap();
    assert_eq!(parts.manifest.digest(), manifest.digest());
    assert_eq!(parts.latent_shape(), [4, 5, 8, 8]);

    let [(_, unet), (_, text), (_, vae)] = user.models();
    let mut loaded = nn::VarStore::new(Device::Cpu);
    let _ = UNet::new(&loaded.root(), &parts.manifest.recipe.backbone, &[]);
    parts.load_backbone(&loaded).unwrap();
    assert!(
        loaded
            .variables()
            .iter()
            .all(|(name, tensor)| *tensor == unet.variables()[name])
    );
    loaded = nn::VarStore::new(Device::Cpu);
    let encoder = TextEncoder::new(&loaded.root(), &parts.manifest.recipe.text, 516);
    loaded.copy(&text).unwrap();
    let tokens = Tensor::from_slice(&[514_i64, 513, 515, 515, 515, 515, 515, 515]).reshape([1, 8]);
    // Sums of several threads may differ in the last digits.
    let same = |a: Tensor, b: Tensor| assert!(a.allclose(&b, 1e-4, 1e-5, false));
    same(parts.text.embed(&["cat"]), tch::no_grad(|| encoder.forward(&tokens)));
    loaded = nn::VarStore::new(Device::Cpu);
    let twin = Vae::new(&loaded.root(), &parts.manifest.recipe.vae);
    loaded.copy(&vae).unwrap();
    let clip = normal(&[1, 3, 5, 16, 16], 3, Device::Cpu);
    same(parts.vae.encode(&clip), tch::no_grad(|| twin.encode(&clip)));

    // The large files are there once, and a second import does not replace the first.
    let linked = |a: &Path, b: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(a).unwrap().ino() == std::fs::metadata(b).unwrap().ino()
    };
    assert!(linked(&user.path("unet"), &folder.join(BACKBONE)));
    assert!(
        import(&user.args())
            .unwrap_err()
            .to_string()
            .contains("is there already")
    );
}

/// Stable Diffusion's own VAE: one stage under plain names. Such parts encode pictures and nothing else.
#[test]
fn a_vae_of_pictures_makes_parts_for_pictures_alone() {
    let user = User::new();
    let args = ImportArgs {
        pictures: true,
        ..user.args()
    };
    let error = import(&args).unwrap_err().to_string();
    assert!(
        error.contains("which the model does not have"),
        "a video VAE is another: {error}"
    );
    let vs = nn::VarStore::new(Device::Cpu);
    let _ = Vae::new(&vs.root(), &recipe(&args).unwrap().vae);
    seed_weights(&vs, 5);
    save_tensors(user.as_published("vae", &vs), &user.path("vae")).unwrap();
    import(&args).unwrap();
    let parts = Assets::open(&user.path("assets"), "mine", Device::Cpu).unwrap();
    let picture = normal(&[1, 3, 1, 16, 16], 3, Device::Cpu);
    assert_eq!(parts.vae.encode(&picture).size(), [1, 4, 1, 2, 2]);

    let out = user.path("shards");
    let settings = Settings::of(vec!["1x16x16@1".parse().unwrap(), "17x16x16@10".parse().unwrap()]);
    let error = Plan::of(user.0.path(), &out, &parts, &settings, &mut |_| Ok(()))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "`buckets[1].frames` is 17; allowed: 1, as the VAE of these parts is one of single pictures"
    );
    let evaluation = Evaluation {
        evaluator: "vbench".to_owned(),
        ..Space::parse(SPACE).unwrap().evaluation.unwrap()
    };
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &parts.manifest.recipe.backbone, &[]);
    let error = sampling(&parts, &evaluation, &unet).unwrap_err().to_string();
    assert!(error.contains("`mine`") && error.contains("single pictures"), "{error}");
}

#[test]
fn parts_without_evaluators_and_clips_say_what_to_use() {
    let user = User::new();
    import(&ImportArgs {
        copy: true,
        ..user.args()
    })
    .unwrap();
    let parts = Assets::open(&user.path("assets"), "mine", Device::Cpu).unwrap();
    let evaluation = Space::parse(SPACE).unwrap().evaluation.unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &parts.manifest.recipe.backbone, &[]);
    let error = score(&parts, &evaluation, &unet, &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, ScoringError::NoEvaluators { .. }));
    assert!(error.to_string().contains("`evaluation.evaluator`"), "{error}");
    let error = parts.source(user.0.path()).err().unwrap().to_string();
    assert!(error.contains("know no clips"), "{error}");
}

/// Rewrites a file tensor by tensor.
fn change(path: &Path, change: impl Fn(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, view): (String, TensorView<'_>)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let mut tensors: Vec<_> = file.tensors().into_iter().map(of).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A user's CLIP, as it is published with what is no weight, and a linear head.
fn add_scorers(user: &User) -> ImportArgs {
    std::fs::write(user.path("sizes.toml"), [SIZES, CLIP_SIZES].concat()).unwrap();
    let args = ImportArgs {
        clip: Some(user.path("clip")),
        aesthetic: Some(user.path("aesthetic")),
        ..user.args()
    };
    let config = recipe(&args).unwrap().clip.unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let _ = ClipModel::new(&vs.root(), &config, 516);
    seed_weights(&vs, 5);
    let temperature = ("logit_scale".to_owned(), Tensor::from(4.6_f32));
    save_tensors(vs.variables().into_iter().chain([temperature]), &user.path("clip")).unwrap();
    let head = [("weight", [1_i64, 6].as_slice(), 2), ("bias", &[1], 3)];
    let head = head.map(|(name, shape, seed)| (name.to_owned(), normal(shape, seed, Device::Cpu)));
    save_tensors(head, &user.path("aesthetic")).unwrap();
    args
}

#[test]
fn clip_and_an_aesthetic_head_come_along_and_are_checked_likewise() {
    let user = User::new();
    let args = add_scorers(&user);
    let (_, manifest) = import(&args).unwrap();
    assert!(manifest.files.contains_key("clip.safetensors") && manifest.files.contains_key("aesthetic.safetensors"));
    let parts = Assets::open(&user.path("assets"), "mine", Device::Cpu).unwrap();
    let scorer = parts.picture_scorer().unwrap().unwrap();
    let picture = normal(&[1, 3, 20, 16], 3, Device::Cpu);
    let score = scorer.score(&picture, &["cat"])[0];
    assert!(score.aesthetic.is_some() && (0.0..=100.0).contains(&score.clip));
    std::fs::remove_dir_all(user.path("assets")).unwrap();

    for (name, tensor) in [
        ("clip", "text_projection.weight"),
        ("clip", "visual_projection.weight"),
        ("aesthetic", "weight"),
    ] {
        let path = user.path(name);
        let whole = std::fs::read(&path).unwrap();
        let refused = |parts: &[&str]| {
            let error = import(&args).unwrap_err().to_string();
            assert!(!user.path("assets").exists(), "{error}");
            for part in parts.iter().chain([&tensor]) {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
            std::fs::write(&path, &whole).unwrap();
        };
        change(&path, |tensors| {
            let tensor = tensors.iter_mut().find(|t| t.0 == tensor).unwrap();
            tensor.2.insert(0, 1);
        });
        refused(&["has shape [1, ", "expected is ["]);
        change(&path, |tensors| {
            tensors.iter_mut().find(|t| t.0 == tensor).unwrap().1 = Dtype::I32
        });
        refused(&["I32", "expected is F32"]);
        change(&path, |tensors| tensors.retain(|t| t.0 != tensor));
        refused(&[&path.display().to_string()]);
    }
    // The text encoder alone, as it is imported beside, lacks one tower and both projections.
    std::fs::copy(user.path("text"), user.path("clip")).unwrap();
    let error = import(&args).unwrap_err().to_string();
    assert!(error.contains("no tensor `text_projection.weight`"), "{error}");
    assert!(!user.path("assets").exists());
    // What is not given is not there.
    let args = ImportArgs {
        clip: None,
        aesthetic: None,
        ..args
    };
    let (_, manifest) = import(&args).unwrap();
    assert!(manifest.recipe.clip.is_none() && manifest.files.len() == 3);
    let parts = Assets::open(&user.path("assets"), "mine", Device::Cpu).unwrap();
    assert!(parts.picture_scorer().unwrap().is_none());
}

#[test]
fn an_aesthetic_head_reads_the_embeddings_of_clip() {
    use clap::Parser;
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ImportArgs,
    }
    let line = "import --name a --unet u --text t --tokenizer z --vae v --aesthetic h";
    let error = Line::try_parse_from(line.split(' ')).unwrap_err().to_string();
    assert!(error.contains("--clip"), "{error}");
    assert!(Line::try_parse_from(format!("{line} --clip c").split(' ')).is_ok());
}

/// Criterion by criterion: truncated, mislabelled, of a wrong shape, of a wrong type, in each of the files.
#[test]
fn each_kind_of_broken_file_is_refused_by_name_before_anything_is_written() {
    let user = User::new();
    for (name, tensor, other) in [
        ("unet", "unet.conv_in.weight", "unet.conv_in.wieght"),
        (
            "text",
            "text_model.final_layer_norm.weight",
            "text_model.final_norm.weight",
        ),
        (
            "vae",
            "temporal_vae.encoder.conv_in.conv.weight",
            "temporal_vae.encoder.conv_in.weight",
        ),
    ] {
        let path = user.path(name);
        let whole = std::fs::read(&path).unwrap();
        let refused = |parts: &[&str]| {
            let error = user.refusal();
            for part in parts {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
            std::fs::write(&path, &whole).unwrap();
        };
        std::fs::write(&path, &whole[..whole.len() - 100]).unwrap();
        refused(&[&path.display().to_string(), "it ends within or before `"]);
        change(&path, |tensors| {
            tensors.iter_mut().find(|t| t.0 == tensor).unwrap().0 = other.to_owned()
        });
        refused(&[
            other,
            "does not have",
            "nearest expected name",
            tensor.trim_start_matches("unet."),
        ]);
        change(&path, |tensors| {
            let tensor = tensors.iter_mut().find(|t| t.0 == tensor).unwrap();
            tensor.2.insert(0, 1);
        });
        refused(&[tensor, "has shape [1, ", "expected is ["]);
        change(&path, |tensors| {
            tensors.iter_mut().find(|t| t.0 == tensor).unwrap().1 = Dtype::I32
        });
        refused(&[tensor, "I32", "expected is F32"]);
        change(&path, |tensors| tensors.retain(|t| t.0 != tensor));
        refused(&["has no tensor", tensor.trim_start_matches("unet.")]);
        std::fs::write(&path, "no tensors").unwrap();
        refused(&[&path.display().to_string(), "no safetensors file"]);
    }
    // The right kind of file in the wrong place.
    std::fs::copy(user.path("vae"), user.path("text")).unwrap();
    assert!(user.refusal().contains("does not have"));
}

#[test]
fn sizes_that_cannot_be_or_do_not_fit_each_other_are_refused() {
    let user = User::new();
    for (from, to, problem) in [
        ("heads = 2", "heads = 3", "text.heads is 3"),
        ("heads = 2", "heads = 0", "text.heads is 0"),
        (
            "width = 32",
            "width = 16",
            "unet.text_width and text.width are 32 and 16",
        ),
        ("tokens = 8", "tokens = 1", "text.tokens is 1"),
        ("[4, 4, 8, 8]", "[]", "vae.spatial.block_out_channels"),
        ("[4, 4, 8, 8]", "[4, 4, 8, 7]", "vae.spatial.norm_groups is 2"),
        ("[1, 1, 2, 2]", "[1, 1, 2]", "vae.temporal.channel_multipliers"),
        ("filters = 4", "filters = -4", "vae.temporal.filters is -4"),
        ("res_blocks = 1", "res_blocks = 1\nblocks = 2", "unknown field `blocks`"),
        ("latent_channels = 4", "latent_channels = 8", "are 4 and 8"),
        ("patch = 8", "patch = 7", "clip.image.patch is 7"),
        ("width = 12", "width = 13", "clip.text.heads is 2"),
    ] {
        std::fs::write(
            user.path("sizes.toml"),
            [SIZES, CLIP_SIZES].concat().replacen(from, to, 1),
        )
        .unwrap();
        let error = user.refusal();
        assert!(
            error.contains(problem) && error.contains("sizes.toml"),
            "{problem} is not in: {error}"
        );
    }
}

#[test]
fn without_files_of_sizes_the_published_ones_are_meant() {
    let user = User::new();
    let args = ImportArgs {
        space: None,
        sizes: None,
        ..user.args()
    };
    let recipe = recipe(&args).unwrap();
    assert_eq!(recipe.backbone, published::stable_diffusion());
    assert_eq!(
        (recipe.text, recipe.vae),
        (published::clip_vit_l14(), published::open_sora_vae())
    );
    // And a pruned backbone by its space.
    let big = include_str!("../../../../search-spaces/spaces/snapgen-v.toml");
    std::fs::write(user.path("space.toml"), big).unwrap();
    let args = ImportArgs {
        sizes: None,
        ..user.args()
    };
    assert_eq!(super::recipe(&args).unwrap().backbone, published::snapgen_v());
}
