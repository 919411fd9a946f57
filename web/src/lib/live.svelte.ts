import * as api from "../api/client";
import { follow } from "../api/follow";
import { Problem } from "../api/problem";
import type { Event } from "../api/types";
import { apply, type SearchData } from "./reduce";

export type Connection = "connecting" | "live" | "lost";

/** How long events are gathered before the figures that only the coordinator can add up are read again. */
const REFRESH_MS = 1500;

/** One search, kept true by its event stream. */
export class LiveSearch {
  data = $state.raw<SearchData | null>(null);
  problem = $state.raw<Problem | null>(null);
  connection = $state<Connection>("connecting");
  /** Candidates whose figures came while this page was open. */
  arrived = $state.raw<ReadonlySet<string>>(new Set());

  readonly #stop = new AbortController();
  /** Events that came while a snapshot was being read. */
  #early: Event[] | null = null;
  #refresh: ReturnType<typeof setTimeout> | null = null;

  constructor(readonly id: string) {
    // The stream opens before the snapshot is read: what happens in between is in one of the two.
    void follow(
      api.eventsPath(id),
      {
        opened: (resumed) => {
          this.connection = "live";
          if (!resumed) void this.#load();
        },
        messages: (messages) => this.#take(messages.map(({ data }) => JSON.parse(data) as Event)),
        lost: () => {
          this.connection = "lost";
          if (this.data === null) this.problem = Problem.unreachable();
        },
        refused: (problem) => {
          this.problem = problem;
          this.connection = "lost";
        },
      },
      this.#stop.signal,
    );
  }

  close(): void {
    this.#stop.abort();
    if (this.#refresh !== null) clearTimeout(this.#refresh);
  }

  async order(order: api.Order): Promise<void> {
    await api.order(this.id, order);
    await this.#readTotals();
  }

  async #load(): Promise<void> {
    this.#early = [];
    try {
      const [search, candidates, front, jobs] = await Promise.all([
        api.search(this.id),
        api.candidates(this.id),
        api.front(this.id),
        api.jobs(this.id),
      ]);
      const byId = <T extends { id: string }>(items: T[]) => new Map(items.map((item) => [item.id, item]));
      const snapshot = { search, front, candidates: byId(candidates), jobs: byId(jobs), curves: new Map() };
      this.data = this.#early.reduce(apply, { ...snapshot, curves: this.data?.curves ?? snapshot.curves });
      this.problem = null;
    } catch (error) {
      this.problem = Problem.of(error);
    } finally {
      this.#early = null;
    }
  }

  #take(events: Event[]): void {
    this.#early?.push(...events);
    if (this.data === null) return;
    const before = this.data.candidates;
    this.data = events.reduce(apply, this.data);
    const fresh = [...this.data.candidates.values()].filter(
      ({ id, state }) => state === "evaluated" && before.get(id)?.state !== "evaluated",
    );
    if (fresh.length > 0) this.arrived = new Set([...this.arrived, ...fresh.map(({ id }) => id)]);
    if (events.some(({ body }) => body.type !== "job" || body.state !== "leased")) this.#readTotalsSoon();
  }

  #readTotalsSoon(): void {
    this.#refresh ??= setTimeout(() => {
      this.#refresh = null;
      this.#readTotals().catch((error: unknown) => (this.problem = Problem.of(error)));
    }, REFRESH_MS);
  }

  /** Reads budget and history again: the coordinator adds them up, the page does not. */
  async #readTotals(): Promise<void> {
    const [search, front] = await Promise.all([api.search(this.id), api.front(this.id)]);
    if (this.data !== null) this.data = { ...this.data, search, front };
  }
}
