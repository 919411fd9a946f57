import { createHash } from "node:crypto";

/** Address of the coordinator under test. */
export const BASE = (process.env["TEMPONAS_URL"] ?? "http://127.0.0.1:8080").replace(/\/$/, "");

/** Sends a request; anything but success is an error with the problem document in it. */
async function send(path, init = {}) {
  const response = await fetch(BASE + path, init);
  if (!response.ok) throw new Error(`${init.method ?? "GET"} ${path}: ${response.status} ${await response.text()}`);
  return response;
}

export async function get(path) {
  return (await send(path)).json();
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  const response = await send(path, { method: "POST", headers, body: JSON.stringify(body ?? {}) });
  const text = await response.text();
  return text === "" ? null : JSON.parse(text);
}

/** Uploads bytes as an artifact and gives their digest. */
export async function upload(bytes, mediaType) {
  const digest = createHash("sha256").update(bytes).digest("hex");
  const headers = { "content-type": mediaType, "upload-offset": "0" };
  await send(`/v1/artifacts/${digest}`, { method: "PUT", headers, body: bytes });
  return digest;
}

/** Waits until `probe` gives something other than `undefined`. */
export async function until(what, probe, seconds = 30) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await probe();
    if (found !== undefined) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** The coordinator's events of a search so far, as they stand on the wire. */
export async function eventsSoFar(search) {
  const stop = new AbortController();
  const response = await send(`/v1/searches/${search}/events`, {
    headers: { accept: "text/event-stream", "last-event-id": "0" },
    signal: stop.signal,
  });
  let text = "";
  const timer = setTimeout(() => stop.abort(), 1000);
  try {
    for await (const part of response.body) text += Buffer.from(part).toString("utf8");
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    clearTimeout(timer);
  }
  return text.split(/\r?\n\r?\n/).filter((message) => /^data:/m.test(message));
}
