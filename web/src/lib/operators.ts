/** How a choice at a position is drawn. */
export interface ChoiceLook {
  /** Colour family: one of the temporal operators, nothing, or a named choice of another kind of space. */
  family: "conv" | "self" | "cross" | "none" | "other";
  /** Drawn solid (over space and time) rather than outlined (over time alone). */
  solid: boolean;
  /** Layers stacked. */
  depth: number;
  /** Which of the six hues of family `other`. */
  hue: number;
  /** One or two characters for the smallest drawing. */
  short: string;
}

const FAMILIES = [
  ["selfattention", "self", "S"],
  ["crossattention", "cross", "X"],
  ["conv", "conv", "C"],
] as const;
const OTHER_HUES = 6;

/** Every choice that some architecture of a search holds, in the order that gives them their hues. */
export function choicesOf(architectures: Iterable<{ layers: readonly { choice: string }[] }>): string[] {
  const seen = [...architectures].flatMap(({ layers }) => layers.map(({ choice }) => choice));
  return [...new Set(seen)].filter((choice) => lookOf(choice, []).family === "other").sort();
}

/**
 * Reads a choice's name: `Conv1D ×2`, `SelfAttention3D`, `none`, or a choice of another kind of space, whose
 * hue is its place among the `choices` of its search.
 */
export function lookOf(choice: string, choices: readonly string[]): ChoiceLook {
  const [, name = choice, times] = /^(.*?)\s*(?:[×x]\s*(\d+))?$/.exec(choice) ?? [];
  const depth = times === undefined ? 1 : Number(times);
  const plain = name.toLowerCase().replace(/[^a-z0-9]/g, "");
  if (plain === "" || plain === "none") return { family: "none", solid: false, depth: 0, hue: 0, short: "–" };
  const temporal = /^(selfattention|crossattention|conv)([13])d$/.exec(plain);
  const family = FAMILIES.find(([start]) => start === temporal?.[1]);
  if (family !== undefined) {
    const dimensions = temporal?.[2] ?? "";
    return { family: family[1], solid: dimensions === "3", depth, hue: 0, short: family[2] + dimensions };
  }
  const hue = Math.max(0, choices.indexOf(choice)) % OTHER_HUES;
  return { family: "other", solid: true, depth: 1, hue, short: shorten(choice) };
}

/** `nor_conv_3x3` is "n3"; `skip_connect` "sk"; `2` stays. */
function shorten(choice: string): string {
  const [digit] = /\d/.exec(choice) ?? [];
  return choice.length <= 2 || digit === undefined ? choice.slice(0, 2) : choice.slice(0, 1) + digit;
}

/** Where a position stands in a UNet, or null when the space is none. */
export type UnetPlace = { side: "down" | "up"; level: number } | { side: "mid" };

/** Reads `down.1`, `mid`, `up.0`. */
export function unetPlace(position: string): UnetPlace | null {
  if (position === "mid") return { side: "mid" };
  const [, side, level] = /^(down|up)\.(\d+)$/.exec(position) ?? [];
  return level === undefined ? null : { side: side as "down" | "up", level: Number(level) };
}

/** One level of a UNet, from the full resolution down: what goes down beside what comes up. */
export interface UnetLevel<T> {
  down: T | null;
  up: T | null;
}

/** Lays positions out as a UNet: `up.0` comes up from the deepest level. Null when a position is no UNet's. */
export function unetLevels<T extends { position: string }>(
  layers: readonly T[],
): { levels: UnetLevel<T>[]; mid: T | null } | null {
  const placed = layers.map((layer) => ({ layer, place: unetPlace(layer.position) }));
  const on = (side: string) => placed.flatMap(({ layer, place }) => (place?.side === side ? [layer] : []));
  const [down, up] = [on("down"), on("up")];
  if (placed.some(({ place }) => place === null) || down.length === 0) return null;
  const depth = Math.max(down.length, up.length);
  const levels = Array.from({ length: depth }, (_, level) => ({
    down: down[level] ?? null,
    up: up[depth - 1 - level] ?? null,
  }));
  return { levels, mid: on("mid")[0] ?? null };
}
