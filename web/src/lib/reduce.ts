import type { CandidateState, CandidateView, CurvePoint, Event, FrontView, JobView, SearchView } from "../api/types";

/** Everything the page shows of one search. */
export interface SearchData {
  search: SearchView;
  front: FrontView;
  /** By id. */
  candidates: ReadonlyMap<string, CandidateView>;
  /** By id. */
  jobs: ReadonlyMap<string, JobView>;
  /** Loss curves by job, from events only. */
  curves: ReadonlyMap<string, readonly CurvePoint[]>;
}

const PROGRESS: Record<CandidateState, number> = { proposed: 0, evaluating: 1, infeasible: 2, failed: 2, evaluated: 2 };

/**
 * The search after `event`. Events may repeat what a snapshot already has, or come from before it: nothing
 * goes back, so a snapshot with the events around it gives the same in any order of arrival.
 */
export function apply(data: SearchData, { at, body }: Event): SearchData {
  switch (body.type) {
    case "search_state":
      return { ...data, search: { ...data.search, state: body.state, state_reason: body.reason ?? null } };
    case "candidate": {
      const known = data.candidates.get(body.candidate.id);
      if (known !== undefined && isOlder(body.candidate, known)) return data;
      return { ...data, candidates: new Map(data.candidates).set(body.candidate.id, body.candidate) };
    }
    case "front":
      return applyFront(data, body);
    case "job": {
      const known = data.jobs.get(body.job_id);
      const curves = appendCurve(data.curves, body.job_id, body.curve ?? []);
      if (known !== undefined && isEnded(known) && !isEnded(body)) return { ...data, curves };
      const { job_id: id, kind, state, progress } = body;
      // An event does not say how many workers share the job; the list of jobs does.
      const fresh = { search_id: data.search.id, created_at: at, attempts: [], ranks: 1 };
      const job: JobView = {
        ...(known ?? fresh),
        id,
        kind,
        state,
        progress,
        candidate_id: body.candidate_id ?? known?.candidate_id ?? null,
        status: body.status ?? null,
      };
      return { ...data, curves, jobs: new Map(data.jobs).set(id, job) };
    }
  }
}

function isOlder(incoming: CandidateView, known: CandidateView): boolean {
  const ahead = PROGRESS[known.state] - PROGRESS[incoming.state];
  const verified = Object.keys(known.verified).length - Object.keys(incoming.verified).length;
  return ahead > 0 || (ahead === 0 && verified > 0);
}

function isEnded({ state }: Pick<JobView, "state">): boolean {
  return state !== "queued" && state !== "leased";
}

function applyFront(
  data: SearchData,
  body: Extract<Event["body"], { type: "front" }>,
): SearchData {
  const { evaluations, hypervolume, points } = body;
  const { history } = data.front;
  const last = history.at(-1);
  if (last !== undefined && evaluations < last.evaluations) return data;
  const earlier = last?.evaluations === evaluations ? history.slice(0, -1) : history;
  const device_hours = data.search.budget.device_hours;
  return {
    ...data,
    front: { ...data.front, points, history: [...earlier, { evaluations, device_hours, hypervolume }] },
    search: {
      ...data.search,
      hypervolume,
      front_points: points.length,
      budget: { ...data.search.budget, evaluations: Math.max(evaluations, data.search.budget.evaluations) },
    },
  };
}

function appendCurve(
  curves: SearchData["curves"],
  job: string,
  points: readonly CurvePoint[],
): SearchData["curves"] {
  return points.length === 0 ? curves : new Map(curves).set(job, joinCurve(curves.get(job) ?? [], points));
}

/** `known` followed by `fresh`; where an attempt went back to a checkpoint, its new points replace the old. */
export function joinCurve(known: readonly CurvePoint[], fresh: readonly CurvePoint[]): readonly CurvePoint[] {
  const from = fresh[0]?.step ?? Number.POSITIVE_INFINITY;
  return [...known.filter(({ step }) => step < from), ...fresh];
}
