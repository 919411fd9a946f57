"""Runs our models and their peers on the same weights and inputs, and prints how far they are apart.

Called by scripts/parity with a Python that has the peers. Sides run one after the other, so that memory holds one of
them.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

import parity_peers
import parity_recipe

# Largest max|ours - theirs| / max|theirs| of a tensor.
LIMIT = 1e-4
REFERENCES = Path(__file__).resolve().parent.parent / "worker" / "tests" / "reference"
COMMAND = "make parity ARGS=--write-references"
# Kept of a tensor in a reference, at equal distances; and of the tensors of gradients, one of so many.
OUTPUT_VALUES, GRADIENT_VALUES, GRADIENT_TENSORS = 48, 6, 32
# A constant added to all scores of a query leaves its softmax alone, so the gradient of a bias of keys is zero; what is
# computed is rounding. It is held against the gradient of the bias of queries beside it.
KEY_BIAS = re.compile(r"(k_proj|to_k)\.bias$")


@dataclass
class Case:
    name: str
    row: str
    peer: str
    # As our worker reads it: the model's kind with its sizes.
    model: dict
    # {"shape": …}, drawn by the recipe, or {"shape": …, "values": …}.
    inputs: dict
    backward: bool = False
    # Whether the worker's tests hold what the peer says.
    reference: bool = False
    seed: int = 1


def say(message):
    print(f"parity: {message}", file=sys.stderr, flush=True)


def unet(name, channels, attention, heads, groups, text, batch, frames, height, width, layers=2, mobile=False, **settings):
    sizes = {
        "latent_channels": 4,
        "frames": frames,
        "height": height,
        "width": width,
        "channels": channels,
        "layers_per_block": layers,
        "attention": attention,
        "middle": True,
        "heads": heads,
        "text_tokens": text[0],
        "text_width": text[1],
        "norm_groups": groups,
        "ff_multiplier": 4,
        "qk_norm": mobile,
        "rope": mobile,
        "dtype": "f32",
        "parts": 1,
    }
    inputs = {
        "sample": {"shape": [batch, 4, frames, height, width]},
        "time": {"shape": [batch], "values": [0.62, 0.17][:batch]},
        "text": {"shape": [batch, *text]},
    }
    row, peer = "UNet of Stable Diffusion 1.5", "diffusers UNet2DConditionModel"
    if mobile:
        row, peer = "UNet of snapgen-v", f"{peer}, transformers LlamaRMSNorm, rotary-embedding-torch"
    row += f", {frames} frame{'s' if frames > 1 else ''}"
    return Case(name, row, peer, {"unet": sizes}, inputs, **settings)


def text_encoder(name, width, heads, layers, vocabulary, tokens, words, **settings):
    end = vocabulary - 1
    sizes = {"tokens": tokens, "width": width, "heads": heads, "layers": layers}
    model = {"text_encoder": {"config": sizes, "vocabulary": vocabulary, "end": end}}
    ids = []
    for i, count in enumerate(words):
        drawn = parity_recipe.below(end - 1, 1, f"words.{i}", [count]).tolist()
        ids += [end - 1, *drawn] + [end] * (tokens - 1 - count)
    inputs = {"tokens": {"shape": [len(words), tokens], "values": ids}}
    return Case(name, "Text encoder of CLIP ViT-L/14", "transformers CLIPTextModel", model, inputs, **settings)


def clip(name, image, text, **settings):
    """Both towers and projections; `image` has the picture's and the patch's side, width, heads, layers and the width of
    the shared space, `text` what `text_encoder` takes after the name."""
    captions = text_encoder(name, *text)
    encoder = captions.model["text_encoder"]
    sizes = dict(zip(["image", "patch", "width", "heads", "layers", "projection"], image))
    model = {"clip": {**encoder, "config": {"image": sizes, "text": encoder["config"]}}}
    batch = captions.inputs["tokens"]["shape"][0]
    inputs = {"pixels": {"shape": [batch, 3, image[0], image[0]]}, **captions.inputs}
    return Case(name, "Both towers of CLIP ViT-L/14", "transformers CLIPModel", model, inputs, **settings)


def spatial_vae(name, channels, groups, batch, size, **settings):
    sizes = {"block_out_channels": channels, "layers_per_block": 2, "norm_groups": groups, "latent_channels": 4}
    inputs = {
        "frames": {"shape": [batch, 3, size, size]},
        "latents": {"shape": [batch, 4, size // 8, size // 8]},
    }
    return Case(name, "Spatial VAE, encode and decode", "diffusers AutoencoderKL", {"spatial_vae": sizes}, inputs, **settings)


OPERATORS = {
    "conv1d": ("Conv1D", "torch GroupNorm, Conv3d"),
    "conv3d": ("Conv3D", "torch GroupNorm, Conv3d"),
    "self_attention1d": ("SelfAttention1D", "diffusers Attention, transformers LlamaRMSNorm, rotary-embedding-torch"),
    "self_attention3d": ("SelfAttention3D", "diffusers Attention, transformers LlamaRMSNorm, {rotary}"),
    "cross_attention1d": ("CrossAttention1D", "diffusers Attention, transformers LlamaRMSNorm, rotary-embedding-torch"),
    "cross_attention3d": ("CrossAttention3D", "diffusers Attention, transformers LlamaRMSNorm, {rotary}"),
}


def temporal(operator, channels, heads, groups, text, batch, frames, height, width, **settings):
    sizes = {"operator": operator, "channels": channels, "heads": heads, "text_width": text[1], "groups": groups}
    inputs = {
        "clips": {"shape": [batch * frames, channels, height, width]},
        "text": {"shape": [batch, *text]},
    }
    title, peer = OPERATORS[operator]
    whole_pairs = channels // heads % 16 == 0
    peer = peer.format(rotary="diffusers get_3d_rotary_pos_embed" if whole_pairs else "rotary-embedding-torch")
    model = {"temporal_operator": {**sizes, "frames": frames}}
    return Case(f"{operator}-{channels}", f"{title}, {channels} channels", peer, model, inputs, **settings)


def cases():
    small = {"backward": True, "reference": True}
    published, mobile = [True, True, True, False], [False, True, True]
    yield unet("unet-full", [320, 640, 1280, 1280], published, 8, 32, (77, 768), 1, 1, 16, 16)
    yield unet("unet", [16, 32, 48, 48], published, 4, 8, (7, 24), 2, 3, 16, 16, **small)
    yield unet("mobile-full", [320, 640, 1088], mobile, 8, 32, (77, 768), 1, 1, 12, 16, layers=1, mobile=True)
    yield unet("mobile", [16, 32, 48], mobile, 4, 8, (7, 24), 2, 3, 8, 12, layers=1, mobile=True, **small)
    yield text_encoder("text-full", 768, 12, 12, 49408, 77, [6, 60])
    yield text_encoder("text", 32, 4, 3, 50, 11, [4, 9, 0], **small)
    yield clip("clip-full", [224, 14, 1024, 16, 24, 768], [768, 12, 12, 49408, 77, [6, 60]])
    yield clip("clip", [12, 4, 32, 4, 3, 20], [24, 4, 2, 50, 11, [4, 9, 0]], **small)
    yield spatial_vae("vae-full", [128, 256, 512, 512], 32, 1, 64)
    yield spatial_vae("vae", [8, 16, 24, 24], 4, 2, 32, **small)
    for operator in OPERATORS:
        for channels, height, width in [(320, 12, 16), (640, 8, 8), (1280, 4, 6)]:
            yield temporal(operator, channels, 8, 32, (77, 768), 1, 12, height, width)
        yield temporal(operator, 32, 2, 4, (7, 24), 2, 5, 4, 6, **small)


def inputs_of(case):
    """Inputs, and gradients of outputs where the case runs backwards."""
    tensors = {}
    for name, spec in case.inputs.items():
        if "values" in spec:
            kind = torch.int64 if isinstance(spec["values"][0], int) else torch.float32
            tensors[name] = torch.tensor(spec["values"], dtype=kind).reshape(spec["shape"])
        else:
            tensors[name] = torch.from_numpy(parity_recipe.normal_like(case.seed, f"inputs.{name}", spec["shape"]))
    return tensors


def gradients_of(case, outputs):
    """Gradients for outputs, by the outputs' names."""
    drawn = lambda name, output: parity_recipe.normal_like(case.seed, f"gradient.{name}", list(output.shape))
    return {name: torch.from_numpy(drawn(name, output)) for name, output in outputs.items()}


def draw_weights(module, seed):
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.from_numpy(parity_recipe.weight(seed, name, list(tensor.shape))))


def run_peer(case, module):
    """Outputs by name, and gradients as `inputs.NAME` and `weights.NAME` where the case runs backwards."""
    inputs = inputs_of(case)
    if not case.backward:
        with torch.no_grad():
            return dict(module(**inputs))
    for tensor in inputs.values():
        tensor.requires_grad_(tensor.is_floating_point())
    results = dict(module(**inputs))
    sum((results[name] * given).sum() for name, given in gradients_of(case, results).items()).backward()
    leaves = {f"inputs.{name}": tensor for name, tensor in inputs.items()}
    leaves.update((f"weights.{name}", tensor) for name, tensor in module.named_parameters())
    results = {name: tensor.detach() for name, tensor in results.items()}
    results.update((name, leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None)
    return results


def run_ours(case, worker, folder, outputs, *flags):
    """As `run_peer`; `outputs` have the shapes that gradients are given for."""
    (folder / "case.json").write_text(json.dumps({"model": case.model, "seed": case.seed}))
    given = gradients_of(case, outputs) if case.backward else {}
    tensors = {**inputs_of(case), **{f"gradient.{name}": tensor for name, tensor in given.items()}}
    save_file(tensors, folder / "inputs.safetensors")
    if subprocess.run([worker, "parity", str(folder), *flags], stdout=sys.stderr).returncode != 0:
        raise SystemExit(f"parity: error: the worker failed on {case.name} (see above)")
    return load_file(folder / "outputs.safetensors")


def outputs_of(results):
    return {name: tensor for name, tensor in results.items() if not is_gradient(name)}


def is_gradient(name):
    return name.startswith(("weights.", "inputs."))


def with_their_weights(case, worker, folder):
    """The peer writes weights, we read them: gives our results, the peer's, and the number of parameters."""
    module = parity_peers.build(case.model).eval()
    draw_weights(module, case.seed)
    save_file(module.state_dict(), folder / "weights.safetensors")
    parameters = sum(tensor.numel() for tensor in module.state_dict().values())
    theirs = run_peer(case, module)
    del module
    gc.collect()
    return run_ours(case, worker, folder, outputs_of(theirs)), theirs, parameters


def with_our_weights(case, worker, folder, outputs):
    """We write weights, the peer reads them, all of them and no others: gives our results and the peer's."""
    ours = run_ours(case, worker, folder, outputs, "--draw")
    module = parity_peers.build(case.model).eval()
    module.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    return ours, run_peer(case, module)


def errors(ours, theirs):
    """max|ours - theirs| / max|theirs| of each tensor."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"parity: error: tensors of one side only: {sorted(ours.keys() ^ theirs.keys())}")
    found = {}
    for name, expected in theirs.items():
        if ours[name].shape != expected.shape:
            raise SystemExit(f"parity: error: {name} is {list(ours[name].shape)} here, {list(expected.shape)} there")
        beside = KEY_BIAS.sub(lambda match: match[0].replace("k", "q", 1), name)
        error = (ours[name] - expected).abs().max() / theirs[beside].abs().max()
        found[name] = error.item()
    return found


def badness(error):
    # Not a number is worse than any number, and comparisons would pass it over.
    return float("inf") if error != error else error


def worst(found, gradients):
    chosen = {name: error for name, error in found.items() if is_gradient(name) == gradients}
    return max(chosen.items(), key=lambda item: badness(item[1]), default=None)


def samples(tensor, count):
    """Values at equal distances, and the largest magnitude that errors are measured by."""
    flat = tensor.flatten()
    count = min(count, len(flat))
    places = torch.arange(count) * len(flat) // count
    rounded = lambda value: float(f"{value:.7g}")
    values = [rounded(value) for value in flat[places].tolist()]
    return {"shape": list(tensor.shape), "largest": rounded(flat.abs().max().item()), "values": values}


def reference(case, theirs):
    """What the worker's tests hold: the case and samples of the peer's outputs and of some gradients."""
    outputs = {name: samples(tensor, OUTPUT_VALUES) for name, tensor in sorted(outputs_of(theirs).items())}
    names = sorted(name for name in theirs if is_gradient(name) and not KEY_BIAS.search(name))
    names = names[:: -(-len(names) // GRADIENT_TENSORS)]
    gradients = {name: samples(theirs[name], GRADIENT_VALUES) for name in names}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return {
        "made_by": f"{COMMAND}  ({case.peer}; " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ")",
        "case": {"model": case.model, "seed": case.seed},
        "inputs": case.inputs,
        "tensors": {**outputs, **gradients},
    }


def write_reference(path, made):
    lines = [f"  {json.dumps(key)}: {json.dumps(made[key])}," for key in ("made_by", "case", "inputs")]
    tensors = [f"    {json.dumps(name)}: {json.dumps(sampled)}" for name, sampled in made["tensors"].items()]
    text = "{\n" + "\n".join(lines) + '\n  "tensors": {\n' + ",\n".join(tensors) + "\n  }\n}\n"
    path.write_text(text)


def agrees(path, made):
    """Whether a committed reference is of this case and within the limit of what the peer says now."""
    try:
        stands = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if any(stands.get(key) != made[key] for key in ("case", "inputs")) or stands["tensors"].keys() != made["tensors"].keys():
        return False
    for name, now in made["tensors"].items():
        before = stands["tensors"][name]
        if len(before["values"]) != len(now["values"]):
            return False
        if np.abs(np.subtract(before["values"], now["values"])).max() > LIMIT * now["largest"]:
            return False
    return True


def table(rows):
    head = ["model", "peer", "parameters", "outputs", "gradients", "tensors", "worst tensor"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def compare(case, worker, scratch):
    """The row of the table, the worst error, and the reference of the case."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        ours, theirs, parameters = with_their_weights(case, worker, Path(folder))
    made = reference(case, theirs) if case.reference else None
    first = errors(ours, theirs)
    other = replace(case, seed=case.seed + 1)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        second = errors(*with_our_weights(other, worker, Path(folder), outputs_of(theirs)))
    found = {name: max(first[name], second[name], key=badness) for name in first}
    outputs, gradients = worst(found, False), worst(found, True)
    name, error = max((pair for pair in (outputs, gradients) if pair), key=lambda pair: badness(pair[1]))
    written = lambda pair: f"{pair[1]:.1e}" if pair else "–"
    row = [case.row, case.peer, f"{parameters:,}", written(outputs), written(gradients), str(len(found)), name]
    return row, error, made


def main():
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__.split("\n")[0])
    parser.add_argument("worker", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write-references", action="store_true", help="write what the worker's tests hold anew")
    arguments = parser.parse_args()

    chosen = [case for case in cases() if arguments.only in case.name]
    if not chosen:
        raise SystemExit(f"parity: error: --only {arguments.only} names none of {', '.join(c.name for c in cases())}")
    rows, largest, stale = [], 0.0, []
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        for case in chosen:
            row, error, made = compare(case, arguments.worker, scratch)
            say(f"{case.name}: {error:.1e}")
            rows.append(row)
            largest = max(largest, error, key=badness)
            path = REFERENCES / f"{case.name}.json"
            if case.reference and arguments.write_references:
                write_reference(path, made)
            elif case.reference and not agrees(path, made):
                stale.append(path.name)
    print(table(rows))
    print(f"\nfloat32; max|ours - theirs| / max|theirs| of the worst tensor, with weights written by either side.")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}")
    if stale:
        print(f"worker/tests/reference: {', '.join(stale)} differ from what the peers say now; to renew: {COMMAND}")
    print(f"worst relative error {largest:.3g}")
    sys.exit(0 if largest < LIMIT and not stale else 1)


if __name__ == "__main__":
    main()
