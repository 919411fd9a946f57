import type { CandidateView, Figure, FrontPoint, FrontView, LimitView, Metrics, ObjectiveView } from "../api/types";

export type Direction = "minimize" | "maximize";

/** What a mark of the front chart stands for; the first that applies. */
export type Role = "front" | "reference" | "outside" | "dominated";

/** A candidate in the plane of two metrics. */
export interface Mark {
  id: string;
  number: number;
  architecture: string;
  reference: string | null;
  role: Role;
  x: Figure;
  y: Figure;
  /** Where it was measured whole, if it was. */
  verified: { x: Figure; y: Figure } | null;
  /** Whether it keeps the limits as measured whole; null where it was not. */
  verifiedWithinLimits: boolean | null;
}

/** The figures of evaluation and look-up table together; what the table says stands, as on the front. */
export function figures({ predicted, measured }: Pick<CandidateView, "predicted" | "measured">): Metrics {
  return { ...measured, ...predicted };
}

/** Pixels between a point and what is said of it. */
const TIP_GAP = 14;

/** Where a note `wide` pixels wide stands beside the point at `x`, or below it where neither side has room. */
export function placeTip(x: number, wide: number, width: number): { left: number; below: boolean } {
  const [left, right] = [x - TIP_GAP - wide, x + TIP_GAP];
  if (x <= width / 2 && right + wide <= width) return { left: right, below: false };
  if (left >= 0) return { left, below: false };
  return { left: Math.max(0, Math.min(x - wide / 2, width - wide)), below: true };
}

/** Whether more of it is better; both spellings of the word are in use. */
function isGoal({ direction }: ObjectiveView): boolean {
  return direction.startsWith("maximi");
}

/** The direction in which a metric is better; costs are the rule, so that is what a metric is unless an objective says otherwise. */
export function directionOf(metric: string, objectives: readonly ObjectiveView[]): Direction {
  const objective = objectives.find((objective) => objective.metric === metric);
  if (objective !== undefined) return isGoal(objective) ? "maximize" : "minimize";
  return metric === "quality" ? "maximize" : "minimize";
}

/** The metrics that can be an axis: objectives, then limits, then what else the candidates carry. */
export function axisChoices(
  objectives: readonly ObjectiveView[],
  limits: readonly LimitView[],
  candidates: readonly CandidateView[],
): string[] {
  const carried = candidates.flatMap((candidate) => Object.keys(figures(candidate))).sort();
  const named = [...objectives, ...limits].map(({ metric }) => metric);
  return [...new Set([...named, ...carried])].filter(
    (metric) => named.includes(metric) || carried.includes(metric),
  );
}

/** Quality against latency where the space has both; else its first goal against its first cost. */
export function defaultAxes(objectives: readonly ObjectiveView[]): { x: string; y: string } {
  const names = objectives.map(({ metric }) => metric);
  const goal = objectives.find(isGoal)?.metric ?? names[0] ?? "quality";
  const y = names.includes("quality") ? "quality" : goal;
  const costs = names.filter((name) => name !== y);
  const x = costs.includes("latency_ms") ? "latency_ms" : (costs[0] ?? y);
  return { x, y };
}

/** Whether some known figure breaks a limit. */
export function breaksLimit(metrics: Metrics, limits: readonly LimitView[]): boolean {
  return limits.some(({ metric, at_most }) => (metrics[metric]?.value ?? Number.NEGATIVE_INFINITY) > at_most);
}

/** The evaluated candidates that have both figures, in order of number. */
export function marks(
  candidates: readonly CandidateView[],
  front: Pick<FrontView, "points" | "limits">,
  x: string,
  y: string,
): Mark[] {
  const members = new Map(front.points.map((point) => [point.candidate_id, point]));
  return candidates.flatMap((candidate): Mark[] => {
    const member = members.get(candidate.id);
    const metrics = { ...figures(candidate), ...member?.metrics };
    const [fx, fy] = [metrics[x], metrics[y]];
    if (fx === undefined || fy === undefined) return [];
    if (candidate.state !== "evaluated" && member === undefined) return [];
    const whole = { ...candidate.verified, ...member?.verified };
    return [
      {
        id: candidate.id,
        number: candidate.number,
        architecture: candidate.architecture,
        reference: candidate.reference ?? null,
        role: roleOf(candidate, member, metrics, front.limits),
        x: fx,
        y: fy,
        verified: x in whole || y in whole ? { x: whole[x] ?? fx, y: whole[y] ?? fy } : null,
        verifiedWithinLimits:
          member?.verified_within_limits ??
          (Object.keys(whole).length === 0 ? null : !breaksLimit(whole, front.limits)),
      },
    ];
  });
}

function roleOf(
  candidate: CandidateView,
  member: FrontPoint | undefined,
  metrics: Metrics,
  limits: readonly LimitView[],
): Role {
  if (member !== undefined) return "front";
  if (candidate.reference != null) return "reference";
  return breaksLimit(metrics, limits) ? "outside" : "dominated";
}

/**
 * The corners of the front as seen in the plane: members that no other member beats on both axes, from the
 * best x to the best y. With more than two objectives some members are missing here and are still drawn.
 */
export function staircase<T extends { x: Figure; y: Figure }>(members: readonly T[], x: Direction, y: Direction): T[] {
  const sx = x === "minimize" ? 1 : -1;
  const sy = y === "minimize" ? 1 : -1;
  const sorted = [...members].sort((a, b) => sx * (a.x.value - b.x.value) || sy * (a.y.value - b.y.value));
  let best = Number.POSITIVE_INFINITY;
  return sorted.filter((member) => {
    const better = sy * member.y.value < best;
    if (better) best = sy * member.y.value;
    return better;
  });
}

/** Where the front is drawn from and to: the corners of `staircase` and the plane's worst edges, in pixels. */
export function stairPath(corners: readonly { x: number; y: number }[], worstX: number, worstY: number): string {
  const [first] = corners;
  if (first === undefined) return "";
  const steps = corners.map(({ x, y }) => `H${round(x)}V${round(y)}`).join("");
  return `M${round(first.x)},${round(worstY)}${steps}H${round(worstX)}`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

/** The range that shows `values` with a margin; limits near the values widen it, far ones do not. */
export function domain(values: readonly number[], limit: number | null): [number, number] {
  const known = values.filter(Number.isFinite);
  if (known.length === 0) return limit === null ? [0, 1] : [0, limit * 1.1];
  let [low, high] = [Math.min(...known), Math.max(...known)];
  const reach = Math.max(high - low, Math.abs(high) * 0.1);
  if (limit !== null && limit > low - reach && limit < high + 1.5 * reach) {
    [low, high] = [Math.min(low, limit), Math.max(high, limit)];
  }
  const margin = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  const bottom = low >= 0 && low - margin < 0.25 * high ? 0 : low - margin;
  return [bottom, high + margin];
}

/** The name that fits beside a mark: what stands before the explanation after a colon. */
export function shortName(reference: string): string {
  return reference.split(":")[0] ?? reference;
}

/** A text beside its mark; `x` and `y` are where its baseline starts. */
export interface Label {
  text: string;
  x: number;
  y: number;
}

const LABEL = { character: 6.7, ascent: 10, descent: 4, gap: 10 };

interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

function boxOf({ text, x, y }: Label): Box {
  return { left: x, right: x + text.length * LABEL.character, top: y - LABEL.ascent, bottom: y + LABEL.descent };
}

function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

function distance({ left, right, top, bottom }: Box, x: number, y: number): number {
  return Math.hypot(Math.max(left - x, x - right, 0), Math.max(top - y, y - bottom, 0));
}

/** Places each text to the right or left of its mark, above or below it: where it hides the fewest marks and texts. */
export function placeLabels(
  wanted: readonly Label[],
  marks: readonly { x: number; y: number }[],
  bounds: Box,
): Label[] {
  const dots = marks.map(({ x, y }) => ({ left: x - 5, right: x + 5, top: y - 5, bottom: y + 5 }));
  const placed: Label[] = [];
  for (const { text, x, y } of wanted) {
    const width = text.length * LABEL.character;
    const { gap } = LABEL;
    const places = [
      { text, x: x + gap, y: y - 6 },
      { text, x: x + gap, y: y + 4 },
      { text, x: x + gap, y: y + 15 },
      { text, x: x - gap - width, y: y - 6 },
      { text, x: x - gap - width, y: y + 15 },
      { text, x: x - width / 2, y: y + 22 },
      { text, x: x - width / 2, y: y - 14 },
      { text, x: bounds.right - width, y: y + 22 },
      { text, x: bounds.right - width, y: y + 36 },
    ];
    const hidden = (place: Label) => {
      const box = boxOf(place);
      const outside =
        box.left < bounds.left || box.right > bounds.right || box.top < bounds.top || box.bottom > bounds.bottom;
      const texts = placed.filter((other) => overlap(box, boxOf(other))).length;
      return dots.filter((dot) => overlap(box, dot)).length + 4 * texts + (outside ? 50 : 0);
    };
    const [best] = places
      .map((place, index) => ({ place, cost: hidden(place) + 0.1 * index + distance(boxOf(place), x, y) / 12 }))
      .sort((a, b) => a.cost - b.cost);
    if (best !== undefined) placed.push(best.place);
  }
  return placed;
}
