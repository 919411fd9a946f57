import type { Figure } from "../api/types";

/** How a metric is shown: the unit that its name states, and what a shown figure is divided by. */
export interface Unit {
  label: string;
  unit: string;
  divisor: number;
  /** Whether figures are counts, which have no digits after the point. */
  whole: boolean;
}

const KIB = 1024;
const MIB = KIB ** 2;
const GIB = KIB ** 3;
const MINUS = "\u2212";
/** What is smaller is the noise of arithmetic. */
const SMALLEST = 1e-8;

const SUFFIXES: [suffix: string, unit: string][] = [
  ["_milliseconds", "ms"],
  ["_ms", "ms"],
  ["_seconds", "s"],
  ["_mj", "mJ"],
  ["_percent", "%"],
];
const COUNTS: Record<string, string> = { macs: "MAC", flops: "FLOP", parameters: "", params: "" };
const PREFIXES: [size: number, prefix: string][] = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];

/** The name of a metric for people: `peak_memory_bytes` is "peak memory". */
export function metricLabel(metric: string): string {
  const suffix = metric.endsWith("_bytes") ? "_bytes" : SUFFIXES.find(([end]) => metric.endsWith(end))?.[0];
  const stem = suffix === undefined ? metric : metric.slice(0, -suffix.length);
  return stem.replaceAll("_", " ").replace(/\bmacs\b/, "MACs").replace(/\bflops\b/, "FLOPs").replace(/\bvae\b/, "VAE");
}

/** The unit for figures of `metric` about as large as `magnitude`; one unit serves a whole axis or column. */
export function unitOf(metric: string, magnitude: number): Unit {
  const label = metricLabel(metric);
  const size = Math.abs(magnitude);
  if (metric.endsWith("_bytes")) {
    if (size >= GIB) return { label, unit: "GiB", divisor: GIB, whole: false };
    const [unit, divisor] = size >= MIB / 10 ? ["MiB", MIB] : ["KiB", KIB];
    return { label, unit, divisor, whole: false };
  }
  const suffix = SUFFIXES.find(([end]) => metric.endsWith(end));
  if (suffix !== undefined) return { label, unit: suffix[1], divisor: 1, whole: false };
  const [divisor, prefix] = PREFIXES.find(([limit]) => size >= limit && size >= 1e4) ?? [1, ""];
  return { label, unit: prefix + (COUNTS[metric] ?? ""), divisor, whole: metric in COUNTS && divisor === 1 };
}

/** `value` with `decimals` digits after the point and a true minus sign. */
export function fixed(value: number, decimals: number): string {
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", MINUS);
}

/** `value` to `digits` significant digits, whole numbers never cut. */
export function significant(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : Number.isNaN(value) ? "–" : `${MINUS}∞`;
  return Math.abs(value) < SMALLEST ? "0" : fixed(value, decimalsFor(value, digits));
}

function decimalsFor(value: number, digits: number): number {
  if (value === 0) return 0;
  return Math.min(8, Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value)))));
}

/** The number alone, in `unit`: its digits end where its standard error has two. */
export function figureText({ value, standard_error }: Figure, { divisor, whole }: Unit): string {
  const error = (standard_error ?? 0) / divisor;
  const shown = value / divisor;
  if (!(error > 0)) return whole ? fixed(shown, 0) : exact(shown);
  const decimals = decimalsFor(error, 2);
  return `${fixed(shown, decimals)} ± ${fixed(error, decimals)}`;
}

/** A figure without a known error: four significant digits, and not more than hundredths of what is large. */
function exact(value: number): string {
  return Math.abs(value) >= 1 ? fixed(value, Math.min(2, decimalsFor(value, 4))) : significant(value, 4);
}

/** A figure with its unit. */
export function figureWithUnit(metric: string, figure: Figure): string {
  const unit = unitOf(metric, figure.value);
  return withUnit(figureText(figure, unit), unit.unit);
}

/** A limit with its unit, as round as it was set. */
export function limitText(metric: string, limit: number): string {
  const { unit, divisor } = unitOf(metric, limit);
  const shown = limit / divisor;
  return withUnit(Number.isInteger(shown) ? fixed(shown, 0) : exact(shown), unit);
}

export function withUnit(text: string, unit: string): string {
  return unit === "" ? text : `${text}\u00a0${unit}`;
}

/** The labels of an axis: with digits after the point for all, or each with its own where they span powers of ten. */
export function tickTexts(values: readonly number[]): string[] {
  const decimals = values.map(decimalsOf);
  const sizes = values.filter((value) => value !== 0).map(Math.abs);
  const logarithmic = !values.includes(0) && Math.max(...sizes) >= 100 * Math.min(...sizes);
  return values.map((value, index) => fixed(value, logarithmic ? (decimals[index] ?? 0) : Math.max(...decimals)));
}

/** How many digits after the point `value` has, but for the noise of floating-point arithmetic. */
function decimalsOf(value: number): number {
  const decimals = Array.from({ length: 8 }, (_, index) => index);
  return decimals.find((count) => Math.abs(Number(value.toFixed(count)) - value) <= 1e-7 * Math.abs(value)) ?? 8;
}

/** Seconds as people say them: `48 s`, `3 min 20 s`, `2 h 5 min`. */
export function duration(seconds: number): string {
  if (seconds < 10) return `${significant(seconds, 2)}\u00a0s`;
  const whole = Math.round(seconds);
  const [h, min, s] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  if (h > 0) return `${h}\u00a0h ${min}\u00a0min`;
  return min > 0 ? `${min}\u00a0min ${s}\u00a0s` : `${s}\u00a0s`;
}

/** Device-hours, to the hundredth and finer where there is little. */
export function hours(value: number): string {
  return `${value === 0 || value >= 1 ? fixed(value, 2) : significant(value, 2)}\u00a0h`;
}

/** A length in bytes. */
export function bytes(value: number): string {
  if (value < KIB) return `${value}\u00a0bytes`;
  const [size, name] = value >= GIB ? [GIB, "GiB"] : value >= MIB ? [MIB, "MiB"] : [KIB, "KiB"];
  return `${significant(value / size)}\u00a0${name}`;
}

/** A count given as decimal text of any length: grouped, or as a power of ten. */
export function bigCount(decimal: string): string {
  const digits = decimal.replace(/^0+(?=\d)/, "");
  if (digits.length <= 9) return digits.replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const exponent = [...String(digits.length - 1)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("");
  return `${digits[0]}.${digits.slice(1, 3)} × 10${exponent}`;
}

const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** A moment seen from `now`: "5 minutes ago". */
export function ago(moment: string, now: number): string {
  const seconds = (new Date(moment).getTime() - now) / 1000;
  const [size, name] = ([[86_400, "day"], [3600, "hour"], [60, "minute"]] as const).find(
    ([size]) => Math.abs(seconds) >= size,
  ) ?? [1, "second"];
  return Math.abs(seconds) < 10 ? "just now" : RELATIVE.format(Math.round(seconds / size), name);
}

export function moment(iso: string): string {
  return new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}
