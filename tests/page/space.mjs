/** A table space of its own: six positions with three choices each, 729 rows. */

const POSITIONS = 6;
const GAIN = [0, 3, 5];
const COST_MS = [0, 2, 5];

export const MAX_EVALUATIONS = 120;

/** `name` tells this run's search from others. */
export function space(name) {
  const positions = Array.from({ length: POSITIONS }, (_, index) => `"layer.${index}"`).join(", ");
  return `name = "${name}"
title = "A small table for the page's test"
kind = "table"
positions = [${positions}]

[[choices]]
name = "none"
code = "0"

[[choices]]
name = "narrow"
code = "1"

[[choices]]
name = "wide"
code = "2"

[structure]
ordered = true
null = "0"

[table]
key = "architecture"
known = ["latency_ms"]

[[objectives]]
metric = "accuracy"
direction = "maximise"

[[objectives]]
metric = "latency_ms"
direction = "minimise"

[limits]
latency_ms = 30

[[references]]
name = "nothing anywhere"
architecture = "000000"

[[references]]
name = "narrow: everywhere"
architecture = "111111"

[search]
strategy = "random"
seed = 7
width = 1
max_evaluations = ${MAX_EVALUATIONS}
finalists = 0
`;
}

/** Accuracy grows with width, most in the middle; latency with width, most at the ends. */
export function table() {
  const rows = Array.from({ length: 3 ** POSITIONS }, (_, index) => {
    const choices = index.toString(3).padStart(POSITIONS, "0");
    let [accuracy, latency] = [60, 4];
    for (const [position, code] of [...choices].entries()) {
      const middle = position === 2 || position === 3;
      accuracy += GAIN[Number(code)] * (middle ? 1.5 : 1);
      latency += COST_MS[Number(code)] * (middle ? 1 : 1.4);
    }
    return `${choices},${accuracy.toFixed(2)},${latency.toFixed(2)}`;
  });
  return `architecture,accuracy,latency_ms\n${rows.join("\n")}\n`;
}
