import { describe, expect, it } from "vitest";
import type { CandidateView, FrontPoint, Metrics } from "../api/types";
import { axisChoices, defaultAxes, directionOf, domain, marks, placeLabels, placeTip, shortName, staircase, stairPath } from "./front";

const OBJECTIVES = [
  { metric: "quality", direction: "maximize" },
  { metric: "latency_ms", direction: "minimize" },
];
const LIMITS = [{ metric: "latency_ms", at_most: 50 }];

function figure(value: number) {
  return { value, standard_error: 0 };
}

function candidate(number: number, quality: number | null, latency: number, rest: Partial<CandidateView> = {}): CandidateView {
  return {
    id: `c${number}`,
    search_id: "s",
    number,
    architecture: "-",
    layers: [],
    state: quality === null ? "evaluating" : "evaluated",
    predicted: { latency_ms: figure(latency) },
    measured: quality === null ? {} : { quality: figure(quality) },
    verified: {},
    on_front: false,
    artifacts: [],
    created_at: "2030-01-01T00:00:00Z",
    ...rest,
  };
}

function member(number: number, metrics: Metrics, verified: Metrics = {}): FrontPoint {
  const within = "latency_ms" in verified ? (verified["latency_ms"]?.value ?? 0) <= 50 : null;
  return { candidate_id: `c${number}`, number, architecture: "-", metrics, verified, verified_within_limits: within };
}

describe("axes", () => {
  it("are quality against latency where the space has both", () => {
    expect(defaultAxes(OBJECTIVES)).toEqual({ x: "latency_ms", y: "quality" });
  });

  it("are the goal against the cost of a table", () => {
    const objectives = [
      { metric: "flops", direction: "minimise" },
      { metric: "mean_acc", direction: "maximise" },
    ];
    expect(defaultAxes(objectives)).toEqual({ x: "flops", y: "mean_acc" });
  });

  it("can be two costs when there is no goal", () => {
    const objectives = [
      { metric: "cifar100_error", direction: "minimize" },
      { metric: "pixel3_latency_ms", direction: "minimize" },
    ];
    expect(defaultAxes(objectives)).toEqual({ x: "pixel3_latency_ms", y: "cifar100_error" });
  });

  it("can be any objective, limit or figure, each once and in this order", () => {
    const extra = candidate(0, 0.5, 10, { measured: { quality: figure(0.5), color: figure(1) } });
    expect(axisChoices(OBJECTIVES, [{ metric: "parameters", at_most: 9 }, ...LIMITS], [extra])).toEqual([
      "quality",
      "latency_ms",
      "parameters",
      "color",
    ]);
  });

  it("are better downwards unless an objective says otherwise", () => {
    expect(directionOf("mean_acc", [{ metric: "mean_acc", direction: "maximise" }])).toBe("maximize");
    expect(directionOf("parameters", OBJECTIVES)).toBe("minimize");
  });
});

describe("marks", () => {
  it("are the evaluated candidates, each in its role", () => {
    const candidates = [
      candidate(0, 0.5, 20, { reference: "backbone alone" }),
      candidate(1, 0.8, 30),
      candidate(2, 0.6, 40),
      candidate(3, 0.9, 60),
      candidate(4, null, 25),
    ];
    const points = [member(1, { quality: figure(0.8), latency_ms: figure(30) })];
    const found = marks(candidates, { points, limits: LIMITS }, "latency_ms", "quality");
    expect(found.map(({ number, role }) => [number, role])).toEqual([
      [0, "reference"],
      [1, "front"],
      [2, "dominated"],
      [3, "outside"],
    ]);
  });

  it("of verified candidates say where they were measured and whether they keep the limits", () => {
    const points = [member(1, { quality: figure(0.8), latency_ms: figure(48) }, { latency_ms: figure(52) })];
    const [mark] = marks([candidate(1, 0.8, 48)], { points, limits: LIMITS }, "latency_ms", "quality");
    expect(mark?.verified).toEqual({ x: figure(52), y: figure(0.8) });
    expect(mark?.verifiedWithinLimits).toBe(false);
  });

  it("that the device could not hold keep no limit, though nothing was measured", () => {
    const point = { ...member(1, { quality: figure(0.8), latency_ms: figure(48) }), verified_within_limits: false };
    const [mark] = marks([candidate(1, 0.8, 48)], { points: [point], limits: LIMITS }, "latency_ms", "quality");
    expect(mark?.verified).toBeNull();
    expect(mark?.verifiedWithinLimits).toBe(false);
  });

  it("need both figures", () => {
    expect(marks([candidate(1, 0.8, 48)], { points: [], limits: [] }, "macs", "quality")).toEqual([]);
  });
});

describe("the front's line", () => {
  const at = (x: number, y: number) => ({ x: figure(x), y: figure(y) });

  it("passes only members that none beats on both axes", () => {
    const corners = staircase([at(3, 0.4), at(1, 0.2), at(2, 0.6), at(2, 0.5)], "minimize", "maximize");
    expect(corners.map(({ x, y }) => [x.value, y.value])).toEqual([
      [1, 0.2],
      [2, 0.6],
    ]);
  });

  it("knows every pair of directions", () => {
    const points = [at(1, 1), at(2, 2), at(3, 1.5)];
    expect(staircase(points, "minimize", "minimize").map(({ x }) => x.value)).toEqual([1]);
    expect(staircase(points, "maximize", "maximize").map(({ x }) => x.value)).toEqual([3, 2]);
  });

  it("runs from the worst edge over each corner to the other worst edge", () => {
    expect(stairPath([{ x: 10, y: 80 }, { x: 30, y: 20 }], 100, 90)).toBe("M10,90H10V80H30V20H100");
    expect(stairPath([], 100, 90)).toBe("");
  });
});

describe("a domain", () => {
  it("holds every value and a near limit", () => {
    const [low, high] = domain([40, 60], 70);
    expect(low).toBeLessThan(40);
    expect(high).toBeGreaterThan(70);
  });

  it("does not stretch to a far limit", () => {
    expect(domain([40, 60], 1000)[1]).toBeLessThan(70);
  });

  it("is never empty", () => {
    for (const values of [[], [5], [0], [-3]]) {
      const [low, high] = domain(values, null);
      expect(high).toBeGreaterThan(low);
    }
  });
});

describe("labels", () => {
  const bounds = { left: 0, right: 300, top: 0, bottom: 200 };

  it("stand to the right where there is room", () => {
    expect(placeLabels([{ text: "name", x: 50, y: 50 }], [{ x: 50, y: 50 }], bounds)).toEqual([
      { text: "name", x: 60, y: 44 },
    ]);
  });

  it("stay inside, off marks and off each other", () => {
    const marks = [
      { x: 290, y: 50 },
      { x: 288, y: 54 },
      { x: 260, y: 44 },
    ];
    const placed = placeLabels(marks.slice(0, 2).map((mark) => ({ text: "reference", ...mark })), marks, bounds);
    expect(placed).toHaveLength(2);
    for (const { x, text } of placed) expect(x + text.length * 6.7).toBeLessThanOrEqual(300);
    const [first, second] = placed.map(({ y }) => y);
    expect(Math.abs((first ?? 0) - (second ?? 0))).toBeGreaterThanOrEqual(14);
  });

  it("are what stands before the explanation", () => {
    expect(shortName("SVD-like: convolution and attention in turn")).toBe("SVD-like");
    expect(shortName("backbone alone")).toBe("backbone alone");
  });
});

describe("a note at a point", () => {
  it("stands beside it where there is room, else below it and inside", () => {
    expect(placeTip(100, 200, 640)).toEqual({ left: 114, below: false });
    expect(placeTip(500, 200, 640)).toEqual({ left: 286, below: false });
    expect(placeTip(130, 260, 326)).toEqual({ left: 0, below: true });
    expect(placeTip(200, 260, 326)).toEqual({ left: 66, below: true });
    expect(placeTip(50, 400, 326)).toEqual({ left: 0, below: true });
  });
});
