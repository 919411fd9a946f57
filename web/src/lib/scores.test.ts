import { expect, it } from "vitest";
import { captionsOf, scoredMetrics, scoresOf } from "./scores";

it("tells dimensions from motion and both from costs and facts", () => {
  const names = ["color", "dynamic_degree", "object_class", "parameters", "peak_memory_bytes", "quality", "train_loss"];
  const scores = scoresOf(Object.fromEntries(names.map((name) => [name, { value: 1 }])));
  expect(scores.quality?.metric).toBe("quality");
  expect(scores.dimensions.map(({ metric }) => metric)).toEqual(["color", "object_class"]);
  expect(scores.motion.map(({ metric }) => metric)).toEqual(["dynamic_degree"]);
  expect(scoredMetrics(scores)).toEqual(["quality", "color", "object_class", "dynamic_degree"]);
});

it("reads the prompts of a document of scores, and none of another", () => {
  expect(captionsOf('[{"caption":"a red circle","values":{}},{"caption":"a blue one"},{"values":{}},null]')).toEqual(["a red circle", "a blue one"]);
  expect(captionsOf('{"caption":"a red circle"}')).toEqual([]);
});
