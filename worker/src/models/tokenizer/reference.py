"""Writes reference.json: token numbers by OpenAI's own tokenizer, which shares no code with the crate used here.

    pip download --no-deps clip-anytorch==2.6.0 && unzip clip_anytorch-*.whl && pip install ftfy regex
    python reference.py clip > reference.json
"""

import json
import sys

sys.path.insert(0, sys.argv[1])
from simple_tokenizer import SimpleTokenizer

LENGTH = 77
TEXTS = [
    "a photo of a cat",
    "A Photo of A CAT",
    "",
    "   ",
    "a  photo\tof\n\na   cat  ",
    "it's what they've said: don't we'll I'd you're I'm",
    "rock'n'roll o'clock 'quoted' it''s",
    "3.14159 is 1234567890 and 2nd, 50%",
    "room42b x2y",
    "Hello, world! (really?) -- yes... #tag @you $5 a/b c_d",
    "!!!??? ...---...",
    "caf\u00e9 na\u00efve fa\u00e7ade \u00dcBER stra\u00dfe",
    "cafe\u0301 decomposed",
    "\u043a\u043e\u0442 \u043d\u0430 \u043a\u043e\u0432\u0440\u0435",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \ud55c\uad6d\uc5b4",
    "\U0001f431\U0001f436 cats and dogs \U0001f469\u200d\U0001f680 \u2764\ufe0f",
    "x\u00b2 \u00bd \u2163 \u0664\u0665",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "zq xj qzxv",
    "a photo of " + "a very " * 60 + "big cat",
    "word " * 75,
    "word " * 76,
]


def tokens(tokenizer, text):
    begin, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]
    numbers = [begin] + tokenizer.encode(text) + [end]
    return numbers if len(numbers) <= LENGTH else numbers[: LENGTH - 1] + [end]


def main():
    tokenizer = SimpleTokenizer()
    cases = [{"text": text, "tokens": tokens(tokenizer, text)} for text in TEXTS]
    made_by = "reference.py, with clip/simple_tokenizer.py of PyPI clip-anytorch 2.6.0"
    lines = ",\n".join("    " + json.dumps(case) for case in cases)
    print(f'{{\n  "made_by": {json.dumps(made_by)},\n  "cases": [\n{lines}\n  ]\n}}')


main()
