import { send } from "./client";
import { Problem } from "./problem";
import { EventStreamParser, type Message } from "./sse";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
/** The coordinator sends a comment at least every 15 s; a silence this long is a dead connection. */
const SILENCE_MS = 45_000;

export interface Follower {
  /** The stream is open. */
  opened(): void;
  messages(messages: Message[]): void;
  /** The stream broke and is tried again. */
  lost(): void;
  /** The coordinator refused; it is not tried again. */
  refused(problem: Problem): void;
}

/** Follows an event stream from after `seen` until `signal` aborts, reconnecting with `Last-Event-ID`. */
export async function follow(path: string, seen: number, follower: Follower, signal: AbortSignal): Promise<void> {
  let lastId = String(seen);
  let pauseMs = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    const parser = new EventStreamParser();
    const connection = new AbortController();
    const abort = () => connection.abort();
    signal.addEventListener("abort", abort);
    let silence = setTimeout(abort, SILENCE_MS);
    try {
      const headers = { accept: "text/event-stream", "last-event-id": lastId };
      const response = await send(path, { headers, signal: connection.signal, cache: "no-store" });
      follower.opened();
      pauseMs = FIRST_PAUSE_MS;
      for await (const text of texts(response)) {
        clearTimeout(silence);
        silence = setTimeout(abort, SILENCE_MS);
        const messages = parser.push(text);
        lastId = messages.findLast((message) => message.id !== null)?.id ?? lastId;
        if (messages.length > 0) follower.messages(messages);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) {
        follower.refused(error);
        return;
      }
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", abort);
    }
    if (signal.aborted) return;
    follower.lost();
    await pause(parser.retryMs ?? pauseMs, signal);
    pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
  }
}

async function* texts(response: Response): AsyncGenerator<string> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) yield part.value;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}
