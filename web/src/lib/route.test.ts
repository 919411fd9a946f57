import { expect, it } from "vitest";
import { routeOf } from "./route";

it("knows the addresses of its pages and no others", () => {
  expect(routeOf("/")).toEqual({ page: "searches" });
  expect(routeOf("/searches/a%20b")).toEqual({ page: "search", id: "a b" });
  expect(routeOf("/candidates/c/")).toEqual({ page: "candidate", id: "c" });
  for (const path of ["/searches/a/b", "/jobs/a", "/candidates"]) expect(routeOf(path)).toEqual({ page: "unknown" });
});
