import type { Figure, Metrics } from "../api/types";

export interface Score {
  metric: string;
  figure: Figure;
}

/** The figures of an evaluation, sorted by what they speak of. */
export interface Scores {
  quality: Score | null;
  /** What quality is made of, as the evaluator names it. */
  dimensions: Score[];
  /** Measures of motion. */
  motion: Score[];
}

const MOTION = ["temporal_flickering", "dynamic_degree"];
/** Facts of the architecture and its training rather than judgements of its clips. */
const FACTS = /^(parameters|params|macs|flops|train_loss)$|_(ms|seconds|bytes|mj)$/;

/** Sorts what an evaluator measured; costs and facts are left to the table of figures. */
export function scoresOf(measured: Metrics): Scores {
  const all = Object.entries(measured)
    .filter(([metric]) => !FACTS.test(metric))
    .map(([metric, figure]) => ({ metric, figure }));
  return {
    quality: all.find(({ metric }) => metric === "quality") ?? null,
    dimensions: all.filter(({ metric }) => metric !== "quality" && !MOTION.includes(metric)),
    motion: all.filter(({ metric }) => MOTION.includes(metric)),
  };
}

/** The prompts in an evaluator's scores by prompt, in its order; none where the document is another. */
export function captionsOf(document: string): string[] {
  const prompts: unknown = JSON.parse(document);
  if (!Array.isArray(prompts)) return [];
  return prompts.flatMap((prompt: { caption?: unknown } | null) => (typeof prompt?.caption === "string" ? [prompt.caption] : []));
}

/** The metrics among `scores`. */
export function scoredMetrics({ quality, dimensions, motion }: Scores): string[] {
  return [...(quality === null ? [] : [quality]), ...dimensions, ...motion].map(({ metric }) => metric);
}
