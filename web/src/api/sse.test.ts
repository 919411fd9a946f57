import { describe, expect, it } from "vitest";
import { EventStreamParser } from "./sse";

describe("an event stream", () => {
  it("gives the same messages however it is cut into pieces", () => {
    const text = ': hello\r\n\r\nid: 7\r\nevent: front\r\ndata: {"a":\r\ndata: 1}\r\n\r\nid: 8\ndata:x\n\n';
    const whole = new EventStreamParser().push(text);
    expect(whole).toEqual([
      { id: "7", event: "front", data: '{"a":\n1}' },
      { id: "8", event: "message", data: "x" },
    ]);
    for (let size = 1; size < text.length; size += 1) {
      const parser = new EventStreamParser();
      const pieces = Array.from({ length: Math.ceil(text.length / size) }, (_, n) => text.slice(n * size, (n + 1) * size));
      expect(pieces.flatMap((piece) => parser.push(piece)), `pieces of ${size}`).toEqual(whole);
    }
  });

  it("keeps the last id for messages that carry none", () => {
    expect(new EventStreamParser().push("id: 3\ndata: a\n\ndata: b\n\n").map(({ id }) => id)).toEqual(["3", "3"]);
  });

  it("gives nothing for a message that is not complete or has no data", () => {
    expect(new EventStreamParser().push("data: a\n")).toEqual([]);
    expect(new EventStreamParser().push("event: ping\n\n")).toEqual([]);
  });

  it("hears how long to wait before a reconnect", () => {
    const parser = new EventStreamParser();
    parser.push("retry: soon\n");
    expect(parser.retryMs).toBeNull();
    parser.push("retry: 2500\n\n");
    expect(parser.retryMs).toBe(2500);
  });
});
