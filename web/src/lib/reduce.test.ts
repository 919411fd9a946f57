import { describe, expect, it } from "vitest";
import type { CandidateView, Event, EventBody, SearchView } from "../api/types";
import { apply, joinCurve, type SearchData } from "./reduce";

const SEARCH: SearchView = {
  id: "s",
  name: "s",
  space_name: "s",
  space: "",
  state: "searching",
  strategy: "random",
  seed: 1,
  objectives: [],
  limits: [],
  positions: [],
  budget: { evaluations: 3, max_evaluations: 10, device_hours: 0.5, device_seconds: {}, stalled_evaluations: 0 },
  front_points: 0,
  created_at: "2030-01-01T00:00:00Z",
};
const START: SearchData = {
  search: SEARCH,
  front: { search_id: "s", objectives: [], limits: [], points: [], references: [], history: [] },
  candidates: new Map(),
  jobs: new Map(),
  curves: new Map(),
};

let sequence = 0;
function event(body: EventBody): Event {
  sequence += 1;
  return { sequence, at: "2030-01-01T00:00:01Z", body };
}

function candidate(rest: Partial<CandidateView>): EventBody {
  const fresh: CandidateView = {
    id: "c",
    search_id: "s",
    number: 0,
    architecture: "-",
    layers: [],
    state: "proposed",
    predicted: {},
    measured: {},
    verified: {},
    on_front: false,
    artifacts: [],
    created_at: "2030-01-01T00:00:00Z",
  };
  return { type: "candidate", candidate: { ...fresh, ...rest } };
}

function after(...bodies: EventBody[]): SearchData {
  return bodies.map(event).reduce(apply, START);
}

describe("a candidate", () => {
  it("appears, and changes as it is told", () => {
    const data = after(candidate({}), candidate({ state: "evaluating" }), candidate({ state: "evaluated" }));
    expect([...data.candidates.values()].map(({ state }) => state)).toEqual(["evaluated"]);
  });

  it("is never set back by an event from before the snapshot", () => {
    const data = after(candidate({ state: "evaluated" }), candidate({ state: "proposed" }));
    expect(data.candidates.get("c")?.state).toBe("evaluated");
  });

  it("keeps what was verified", () => {
    const verified = { latency_ms: { value: 1 } };
    const data = after(candidate({ state: "evaluated", verified }), candidate({ state: "evaluated" }));
    expect(data.candidates.get("c")?.verified).toEqual(verified);
  });

  it("leaves the state before it as it was", () => {
    after(candidate({}));
    expect(START.candidates.size).toBe(0);
  });
});

describe("the front", () => {
  const front = (evaluations: number, hypervolume: number): EventBody => ({
    type: "front",
    evaluations,
    hypervolume,
    points: [],
  });

  it("grows by one point of history an evaluation", () => {
    const data = after(front(4, 0.2), front(5, 0.3), front(5, 0.3));
    expect(data.front.history.map(({ evaluations }) => evaluations)).toEqual([4, 5]);
    expect(data.search).toMatchObject({ hypervolume: 0.3, budget: { evaluations: 5 } });
  });

  it("does not go back to an earlier one", () => {
    expect(after(front(5, 0.3), front(4, 0.2)).search.hypervolume).toBe(0.3);
  });
});

describe("a job", () => {
  const job = (state: "leased" | "succeeded", progress: number, steps: number[] = []): EventBody => ({
    type: "job",
    job_id: "j",
    kind: "evaluate",
    state,
    candidate_id: "c",
    progress,
    status: `at ${progress}`,
    curve: steps.map((step) => ({ step, loss: 1 / step })),
  });

  it("shows its progress and gathers its curve", () => {
    const data = after(job("leased", 0.1, [10, 20]), job("leased", 0.2, [30]));
    expect(data.jobs.get("j")).toMatchObject({ progress: 0.2, status: "at 0.2", candidate_id: "c" });
    expect(data.curves.get("j")?.map(({ step }) => step)).toEqual([10, 20, 30]);
  });

  it("that ended stays ended", () => {
    expect(after(job("succeeded", 1), job("leased", 0.9)).jobs.get("j")?.state).toBe("succeeded");
  });
});

describe("a search", () => {
  it("takes the state and reason it is told", () => {
    const data = after({ type: "search_state", state: "done", reason: "max_evaluations" });
    expect(data.search).toMatchObject({ state: "done", state_reason: "max_evaluations" });
  });
});

describe("a curve", () => {
  it("is replaced from where an attempt went back to a checkpoint", () => {
    const known = [10, 20, 30].map((step) => ({ step, loss: 1 }));
    const fresh = [20, 30].map((step) => ({ step, loss: 2 }));
    expect(joinCurve(known, fresh).map(({ loss }) => loss)).toEqual([1, 2, 2]);
    expect(joinCurve(known, [])).toEqual(known);
  });
});
