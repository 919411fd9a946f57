#!/usr/bin/env python3
"""Writes what the worker's tests of PSNR, SSIM and LPIPS are held against, computed by other people's code.

PSNR and SSIM are scikit-image's, LPIPS is written down anew in PyTorch with `torch.nn.functional`. Pictures and weights
are drawn by the recipe that both sides share (parity_recipe.py). Runs in a Python that has numpy, PyTorch and
scikit-image (0.24 made what is committed); LPIPS with the published weights needs the file of scripts/lpips.

    scripts/picture_references.py "$(scripts/lpips)" > worker/tests/reference/pictures.json
"""

import json
import struct
import sys

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import parity_recipe

CASES = [(1, [2, 3, 24, 31], 0.02), (2, [1, 3, 11, 40], 0.1), (3, [2, 3, 64, 64], 0.3)]
LPIPS = {"seed": 5, "channels": [4, 6, 7, 5, 5], "shape": [2, 3, 64, 48]}
GRADIENTS = 24


def pair(seed, shape, noise):
    drawn = lambda name: torch.from_numpy(parity_recipe.normal_like(seed, name, shape))
    smooth = F.avg_pool2d(drawn("picture"), 5, 1, 2)
    a = (smooth * 0.5 + 0.5).clamp(0, 1)
    return a, (a + drawn("noise") * noise).clamp(0, 1)


def pictures(seed, shape, noise):
    a, b = (xs.double().numpy() for xs in pair(seed, shape, noise))
    settings = dict(data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0)
    return {
        "seed": seed,
        "shape": shape,
        "noise": noise,
        "psnr_db": [float(peak_signal_noise_ratio(x, y, data_range=1.0)) for x, y in zip(a, b)],
        "ssim": [float(structural_similarity(x, y, **settings)) for x, y in zip(a, b)],
    }


def drawn_weights(seed, channels):
    weights, inputs = {}, 3
    for i, (outputs, kernel) in enumerate(zip(channels, [11, 5, 3, 3, 3])):
        for name, shape in [
            (f"features.{i}.weight", [outputs, inputs, kernel, kernel]),
            (f"features.{i}.bias", [outputs]),
            (f"heads.{i}.weight", [1, outputs, 1, 1]),
        ]:
            weights[name] = torch.from_numpy(parity_recipe.weight(seed, name, shape)).double()
        weights[f"heads.{i}.weight"] = weights[f"heads.{i}.weight"].abs()
        inputs = outputs
    return weights


def published_weights(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    read = lambda entry: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
    return {name: torch.from_numpy(read(entry).copy()).double() for name, entry in header.items() if name[0] != "_"}


def lpips(weights, a, b):
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    layers = [dict(stride=4, padding=2), dict(padding=2), dict(padding=1), dict(padding=1), dict(padding=1)]

    def features(xs):
        xs = (xs - shift) / scale
        for i, layer in enumerate(layers):
            xs = F.max_pool2d(xs, 3, 2) if i in (1, 2) else xs
            xs = F.relu(F.conv2d(xs, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], **layer))
            yield xs / (xs.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    return sum(
        F.conv2d((x - y) ** 2, weights[f"heads.{i}.weight"]).mean((1, 2, 3))
        for i, (x, y) in enumerate(zip(features(a), features(b)))
    )


def main():
    a, b = (xs.double() * 2 - 1 for xs in pair(LPIPS["seed"], LPIPS["shape"], 0.1))
    b.requires_grad_(True)
    distance = lpips(drawn_weights(LPIPS["seed"], LPIPS["channels"]), a, b)
    distance.sum().backward()
    every = b.numel() // GRADIENTS
    made = {
        "made_by": f"scripts/picture_references.py (scikit-image {skimage.__version__}, torch {torch.__version__})",
        "pictures": [pictures(*case) for case in CASES],
        "lpips": {**LPIPS, "distance": distance.tolist(), "gradient": b.grad.flatten()[::every][:GRADIENTS].tolist()},
        "published_lpips": lpips(published_weights(sys.argv[1]), a, b).tolist(),
    }
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
