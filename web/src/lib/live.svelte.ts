import * as api from "../api/client";
import { follow } from "../api/follow";
import { Problem } from "../api/problem";
import type { Message } from "../api/sse";
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
  #refresh: ReturnType<typeof setTimeout> | null = null;

  constructor(readonly id: string) {
    void this.start();
  }

  /** Reads the search, then follows its events. */
  async start(): Promise<void> {
    this.problem = null;
    try {
      // The number comes before everything else is read: what happens meanwhile comes again as an event.
      const { last_event = 0 } = await api.search(this.id);
      const [search, candidates, front, jobs] = await Promise.all([
        api.search(this.id),
        api.candidates(this.id),
        api.front(this.id),
        api.jobs(this.id),
      ]);
      const byId = <T extends { id: string }>(items: T[]) => new Map(items.map((item) => [item.id, item]));
      this.data = { search, front, candidates: byId(candidates), jobs: byId(jobs), curves: new Map() };
      this.#follow(last_event);
    } catch (error) {
      this.problem = Problem.of(error);
    }
  }

  #follow(seen: number): void {
    const follower = {
      opened: () => {
        if (this.connection === "lost") this.#readTotalsSoon();
        this.connection = "live";
        this.problem = null;
      },
      messages: (messages: Message[]) => this.#take(messages.map(({ data }) => JSON.parse(data) as Event)),
      lost: () => (this.connection = "lost"),
      refused: (problem: Problem) => {
        this.problem = problem;
        this.connection = "lost";
      },
    };
    void follow(api.eventsPath(this.id), seen, follower, this.#stop.signal);
  }

  close(): void {
    this.#stop.abort();
    if (this.#refresh !== null) clearTimeout(this.#refresh);
  }

  async order(order: api.Order): Promise<void> {
    await api.order(this.id, order);
    await this.#readTotals();
  }

  #take(events: Event[]): void {
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
      // What fails here is read again once the stream is back, and a lost stream is said already.
      this.#readTotals().catch(() => {});
    }, REFRESH_MS);
  }

  /** Reads budget and history again: the coordinator adds them up, the page does not. */
  async #readTotals(): Promise<void> {
    const [search, front] = await Promise.all([api.search(this.id), api.front(this.id)]);
    if (this.data !== null) this.data = { ...this.data, search, front };
  }
}
