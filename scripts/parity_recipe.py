"""Numbers that any language draws alike, for weights and inputs that two implementations share.

The stream of a name is SplitMix64 (Steele, Lea & Flood 2014) started at the 64-bit FNV-1a hash of `seed/name`; the
upper 24 bits of each draw, divided by 2^23 and less 1, are a number in [-1, 1) that float32 holds exactly. The worker's
`parity::recipe` is the same in Rust.
"""

import math

import numpy as np

# Draws made at once: large weights would need gigabytes of intermediates.
BLOCK = 1 << 22


def bits(seed, name, count):
    """The upper 24 bits of `count` draws of a name."""
    start = 0xCBF29CE484222325
    for byte in f"{seed}/{name}".encode():
        start = (start ^ byte) * 0x100000001B3 % (1 << 64)
    drawn = np.empty(count, np.uint32)
    with np.errstate(over="ignore"):
        for first in range(0, count, BLOCK):
            last = min(first + BLOCK, count)
            z = np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            drawn[first:last] = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    return drawn


def spread(seed, name, shape, center, reach):
    """Uniform within center ± reach, float32."""
    drawn = bits(seed, name, math.prod(shape))
    values = np.empty(len(drawn), np.float32)
    for first in range(0, len(drawn), BLOCK):
        u = drawn[first : first + BLOCK].astype(np.float64) / 8388608.0 - 1.0
        values[first : first + BLOCK] = center + reach * u
    return values.reshape(shape)


def weight(seed, name, shape):
    """A weight by its name and shape: biases within ±0.1, other vectors (of norms) within 1 ± 0.25, the rest of
    variance 1 / fan-in, so that neither activations nor gradients vanish or blow up."""
    if name.endswith("bias"):
        return spread(seed, name, shape, 0.0, 0.1)
    if len(shape) < 2:
        return spread(seed, name, shape, 1.0, 0.25)
    return spread(seed, name, shape, 0.0, math.sqrt(3.0 / math.prod(shape[1:])))


def normal_like(seed, name, shape):
    """An input of mean 0 and variance 1."""
    return spread(seed, name, shape, 0.0, math.sqrt(3.0))


def below(limit, seed, name, shape):
    """Whole numbers from 0 to below `limit`, int64."""
    return (bits(seed, name, math.prod(shape)).astype(np.int64) % limit).reshape(shape)
