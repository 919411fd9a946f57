"""Writes reference.json: pictures prepared by transformers' CLIPImageProcessor, which resizes by Pillow.

    python reference.py > reference.json

with the environment of `make parity`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import PIL
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "scripts"))
import parity_recipe

# Height, width and the side that CLIP takes: smaller, larger, square, upright, and halves that do not come out even.
SIZES = [(40, 57, 16), (9, 7, 12), (30, 30, 10), (64, 37, 24), (23, 11, 11)]
# Of a prepared picture, at equal distances.
VALUES = 120


def case(height, width, side):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    picture = parity_recipe.below(256, 1, f"picture.{height}.{width}", [height, width, 3]).astype(np.uint8)
    prepared = processor(images=PIL.Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    flat = prepared.reshape(-1)
    places = np.arange(VALUES) * flat.size // VALUES
    values = [float(f"{value:.7g}") for value in flat[places]]
    return {"height": height, "width": width, "side": side, "values": values}


def main():
    made_by = f"reference.py, with transformers {transformers.__version__} and Pillow {PIL.__version__}"
    lines = ",\n".join("    " + json.dumps(case(*sizes)) for sizes in SIZES)
    print(f'{{\n  "made_by": {json.dumps(made_by)},\n  "cases": [\n{lines}\n  ]\n}}')


main()
