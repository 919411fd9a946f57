import { describe, expect, it } from "vitest";
import { ago, bigCount, bytes, duration, figureText, figureWithUnit, hours, limitText, metricLabel, significant, tickTexts, unitOf } from "./format";

describe("metrics", () => {
  it("are named without their unit", () => {
    expect(metricLabel("peak_memory_bytes")).toBe("peak memory");
    expect(metricLabel("pipeline_latency_ms")).toBe("pipeline latency");
    expect(metricLabel("overall_consistency")).toBe("overall consistency");
    expect(metricLabel("macs")).toBe("MACs");
  });

  it("have the unit that their name states", () => {
    expect(unitOf("latency_ms", 12).unit).toBe("ms");
    expect(unitOf("pixel3_latency_ms", 3).unit).toBe("ms");
    expect(unitOf("peak_memory_bytes", 64 * 1024 ** 2)).toMatchObject({ unit: "MiB", divisor: 1_048_576 });
    expect(unitOf("peak_memory_bytes", 3 * 1024 ** 3).unit).toBe("GiB");
    expect(unitOf("macs", 12.4e9)).toMatchObject({ unit: "GMAC", divisor: 1e9 });
    expect(unitOf("quality", 0.7).unit).toBe("");
  });
});

describe("figures", () => {
  it("end where their standard error has two digits", () => {
    expect(figureWithUnit("latency_ms", { value: 60.5834, standard_error: 0.4821 })).toBe("60.58 ± 0.48\u00a0ms");
    expect(figureWithUnit("latency_ms", { value: 1020.4, standard_error: 23 })).toBe("1020 ± 23\u00a0ms");
    expect(figureWithUnit("quality", { value: 0.98512, standard_error: 0.00799 })).toBe("0.9851 ± 0.0080");
  });

  it("state no error where none is known", () => {
    const mebibytes = unitOf("peak_memory_bytes", 2e7);
    expect(figureText({ value: 9 * 1024 ** 2, standard_error: 0 }, mebibytes)).toBe("9.00");
    expect(figureText({ value: 19_293_798 }, mebibytes)).toBe("18.40");
    expect(figureWithUnit("accuracy", { value: 87 })).toBe("87.00");
    expect(figureWithUnit("parameters", { value: 482 })).toBe("482");
    expect(figureWithUnit("parameters", { value: 482_304 })).toBe("482.3\u00a0k");
    expect(figureWithUnit("train_loss", { value: 0.182345 })).toBe("0.1823");
  });

  it("of limits are as round as they were set", () => {
    expect(limitText("peak_memory_bytes", 64 * 1024 ** 2)).toBe("64\u00a0MiB");
    expect(limitText("latency_ms", 1020)).toBe("1020\u00a0ms");
    expect(limitText("latency_ms", 12.5)).toBe("12.50\u00a0ms");
  });

  it("use a true minus sign and never a negative zero", () => {
    expect(significant(-1.234)).toBe("\u22121.23");
    expect(figureText({ value: -0.0001, standard_error: 0.1 }, unitOf("quality", 1))).toBe("0.00 ± 0.10");
  });
});

it("what is nothing but noise is zero", () => {
  expect(significant(-3e-15)).toBe("0");
  expect(significant(2.5e-6, 2)).toBe("0.0000025");
});

describe("ticks", () => {
  it("of one axis have the same digits after the point", () => {
    expect(tickTexts([0.05, 0.1, 0.15000000000000002])).toEqual(["0.05", "0.10", "0.15"]);
    expect(tickTexts([9.5, 10, 10.5])).toEqual(["9.5", "10.0", "10.5"]);
    expect(tickTexts([0, 50, 100])).toEqual(["0", "50", "100"]);
    expect(tickTexts([])).toEqual([]);
  });

  it("over powers of ten have their own", () => {
    expect(tickTexts([0.1, 1, 10])).toEqual(["0.1", "1", "10"]);
  });
});

describe("sizes and times", () => {
  it("are said in the unit that suits them", () => {
    expect(bytes(512)).toBe("512\u00a0bytes");
    expect(bytes(1_234_567)).toBe("1.18\u00a0MiB");
    expect(duration(4.25)).toBe("4.3\u00a0s");
    expect(duration(200)).toBe("3\u00a0min 20\u00a0s");
    expect(duration(7500)).toBe("2\u00a0h 5\u00a0min");
    expect(hours(0.0123)).toBe("0.012\u00a0h");
    expect(hours(0)).toBe("0.00\u00a0h");
    expect(hours(1.5)).toBe("1.50\u00a0h");
  });

  it("of the past are told from now", () => {
    const now = Date.parse("2030-01-01T12:00:00Z");
    expect(ago("2030-01-01T11:59:55Z", now)).toBe("just now");
    expect(ago("2030-01-01T11:55:00Z", now)).toBe("5 minutes ago");
    expect(ago("2029-12-31T12:00:00Z", now)).toBe("yesterday");
  });
});

describe("big counts", () => {
  it("are grouped, or powers of ten", () => {
    expect(bigCount("16807")).toBe("16\u202f807");
    expect(bigCount("0")).toBe("0");
    expect(bigCount("00042")).toBe("42");
    expect(bigCount("340282366920938463463374607431768211455")).toBe("3.40 × 10³⁸");
  });
});
