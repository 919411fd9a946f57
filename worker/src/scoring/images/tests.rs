use std::path::Path;

use serde::Deserialize;
use tch::{Device, Tensor, nn};

use super::*;
use crate::models::seeded::normal;
use crate::parity::recipe;

/// What scikit-image and a PyTorch of its own say of pictures that both sides draw; see `scripts/picture_references.py`.
#[derive(Deserialize)]
struct Reference {
    pictures: Vec<Case>,
    lpips: Perceived,
    published_lpips: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    seed: u64,
    shape: [i64; 4],
    noise: f64,
    psnr_db: Vec<f64>,
    ssim: Vec<f64>,
}

#[derive(Deserialize)]
struct Perceived {
    seed: u64,
    channels: [i64; 5],
    shape: [i64; 4],
    distance: Vec<f64>,
    gradient: Vec<f64>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("../../../tests/reference/pictures.json")).unwrap()
}

/// A picture in 0..1 and one with noise on it.
fn pair(seed: u64, shape: &[i64], noise: f64) -> (Tensor, Tensor) {
    let (picture, added) = (
        recipe::input(seed, "picture", shape),
        recipe::input(seed, "noise", shape),
    );
    // Smooth, as pictures are: noise alone has no structure to keep.
    let smooth = picture.avg_pool2d([5, 5], [1, 1], [2, 2], false, true, None);
    let a: Tensor = (smooth * 0.5 + 0.5).clamp(0.0, 1.0);
    let b = (&a + added * noise).clamp(0.0, 1.0);
    (a, b)
}

fn near(found: &Tensor, wanted: &[f64], limit: f64) {
    let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= limit * wanted.abs(), "{found} {wanted}");
    }
}

#[test]
fn psnr_and_ssim_are_those_of_scikit_image() {
    for case in reference().pictures {
        let (a, b) = pair(case.seed, &case.shape, case.noise);
        near(&psnr_db(&b, &a), &case.psnr_db, 1e-5);
        near(&ssim(&b, &a), &case.ssim, 1e-5);
    }
}

fn drawn(config: LpipsConfig, seed: u64) -> (nn::VarStore, Lpips) {
    let vs = nn::VarStore::new(Device::Cpu);
    let lpips = Lpips::new(&vs.root(), config);
    for (name, mut variable) in vs.variables() {
        let weight = recipe::weight(seed, &name, &variable.size());
        // Heads are never negative.
        let weight = if name.starts_with("heads") {
            weight.abs()
        } else {
            weight
        };
        tch::no_grad(|| variable.copy_(&weight));
        let _ = variable.set_requires_grad(false);
    }
    (vs, lpips)
}

/// Narrow layers with drawn weights against PyTorch, its gradient too.
#[test]
fn lpips_is_that_of_a_pytorch_of_its_own() {
    let Perceived {
        seed,
        channels,
        shape,
        distance,
        gradient,
    } = reference().lpips;
    let (_vs, lpips) = drawn(LpipsConfig { channels }, seed);
    let (a, b) = pair(seed, &shape, 0.1);
    let [a, b] = [a, b].map(|xs| xs * 2.0 - 1.0);
    let b = b.set_requires_grad(true);
    let found = lpips.distance(&a, &b);
    near(&found, &distance, 1e-4);
    found.sum(Kind::Float).backward();
    let slopes = b
        .grad()
        .flatten(0, -1)
        .slice(0, None, None, (b.numel() / gradient.len()) as i64);
    let largest = gradient.iter().fold(0.0, |most: f64, slope| most.max(slope.abs()));
    let slopes = Vec::<f64>::try_from(slopes.to_kind(Kind::Double)).unwrap();
    for (found, wanted) in slopes.iter().zip(&gradient) {
        assert!((found - wanted).abs() <= 1e-3 * largest, "{found} {wanted}");
    }
}

/// With the published weights, where this machine has them (`scripts/lpips`).
#[test]
fn the_published_lpips_gives_the_numbers_of_its_authors_layers() {
    let Some(path) = std::env::var_os("TEMPONAS_LPIPS") else {
        return;
    };
    let lpips = Lpips::open(Path::new(&path), Device::Cpu).unwrap();
    let Perceived { seed, shape, .. } = reference().lpips;
    let (a, b) = pair(seed, &shape, 0.1);
    let distance = lpips.distance(&(a * 2.0 - 1.0), &(b * 2.0 - 1.0));
    near(&distance, &reference().published_lpips, 1e-4);
}

/// By hand: an error of 0.1 everywhere is 20 dB; the same picture is as near as can be.
#[test]
fn the_ends_of_the_scales_are_as_defined() {
    let zeros = Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu));
    near(&psnr_db(&(&zeros + 0.1), &zeros), &[20.0, 20.0], 1e-6);
    near(&psnr_db(&zeros, &zeros), &[100.0, 100.0], 0.0);
    let picture = normal(&[1, 3, 40, 40], 1, Device::Cpu).clamp(-1.0, 1.0);
    let (_vs, lpips) = drawn(LpipsConfig { channels: [2; 5] }, 3);
    let same = Likeness::of(&picture, &picture, Some(&lpips));
    assert_eq!((same.psnr_db, same.lpips), (100.0, Some(0.0)));
    assert!((same.ssim - 1.0).abs() < 1e-9);
    assert_eq!(Likeness::of(&picture, &picture, None).lpips, None);
    // What lies beyond −1..1 is cut off, as on a screen.
    let beyond = Likeness::of(&(picture.sign() * 3.0), &picture.sign(), None);
    assert_eq!(beyond.psnr_db, 100.0);
}
