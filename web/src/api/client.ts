import { Problem } from "./problem";
import { session } from "./session.svelte";
import type { CandidateDetail, CandidateView, FrontView, JobView, Page, SearchView } from "./types";

/** Sends a request with the session's token; anything but success is a `Problem`. */
export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  const { token } = session;
  const headers = { accept: "application/json", ...session.headers(), ...(init.headers as Record<string, string>) };
  const response = await fetch(path, { ...init, headers }).catch((error: unknown) => {
    throw error instanceof DOMException && error.name === "AbortError" ? error : Problem.unreachable();
  });
  // A refusal of an earlier token says nothing of the present one.
  if (response.status === 401 && session.token === token) session.demanded = true;
  if (!response.ok) throw await Problem.from(response);
  return response;
}

async function get<T>(path: string): Promise<T> {
  return (await send(path)).json() as Promise<T>;
}

/** Reads every page of a list. */
async function all<T>(path: string): Promise<T[]> {
  const items: T[] = [];
  let cursor: string | null | undefined;
  do {
    const query = new URLSearchParams({ limit: "500", ...(cursor ? { cursor } : {}) });
    const page = await get<Page<T>>(`${path}?${query}`);
    items.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor);
  return items;
}

const id = encodeURIComponent;

export const searches = (): Promise<SearchView[]> => all("/v1/searches");
export const search = (search: string): Promise<SearchView> => get(`/v1/searches/${id(search)}`);
export const candidates = (search: string): Promise<CandidateView[]> => all(`/v1/searches/${id(search)}/candidates`);
export const front = (search: string): Promise<FrontView> => get(`/v1/searches/${id(search)}/front`);
export const jobs = (search: string): Promise<JobView[]> => all(`/v1/searches/${id(search)}/jobs`);
export const candidate = (candidate: string): Promise<CandidateDetail> => get(`/v1/candidates/${id(candidate)}`);
export const job = (job: string): Promise<JobView> => get(`/v1/jobs/${id(job)}`);

export type Order = "pause" | "resume" | "cancel";

/** Pauses, resumes or cancels a search. */
export async function order(search: string, order: Order): Promise<void> {
  await send(`/v1/searches/${id(search)}/${order}`, { method: "POST" });
}

export const eventsPath = (search: string): string => `/v1/searches/${id(search)}/events`;
export const artifactPath = (digest: string): string => `/v1/artifacts/${id(digest)}`;
export const frontPath = (search: string, ending: "csv" | "svg" | "png"): string =>
  `/v1/searches/${id(search)}/front.${ending}`;
