/** One message of an event stream. */
export interface Message {
  id: string | null;
  event: string;
  data: string;
}

/**
 * Reads server-sent events from text as it arrives (the WHATWG "event stream" format). `EventSource` sends
 * no headers and so no token; hence this reader over `fetch`.
 */
export class EventStreamParser {
  #rest = "";
  #id: string | null = null;
  #event = "";
  #data: string[] = [];
  /** What the server asked for as the pause before a reconnect. */
  retryMs: number | null = null;

  /** The messages that `text` completes. */
  push(text: string): Message[] {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line: string): Message[] {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return [];
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retryMs = Number(value);
    return [];
  }

  #dispatch(): Message[] {
    const message = { id: this.#id, event: this.#event || "message", data: this.#data.join("\n") };
    const empty = this.#data.length === 0;
    this.#event = "";
    this.#data = [];
    return empty ? [] : [message];
  }
}
