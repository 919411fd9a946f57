/**
 * What only a search with a worker has: jobs with progress, error bars, verified points, loss curves, samples. The
 * worker is a stand-in (worker.mjs), the space the one of the demo with fewer evaluations and a limit that cuts.
 */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { launch } from "./browser.mjs";
import { BASE, get, post, until } from "./coordinator.mjs";
import { startWorker } from "./worker.mjs";

const STAMP = Date.now().toString(36);
const NAME = `live-test-${STAMP}`;
const DEVICE = `stand-in-${STAMP}`;
const PATIENCE_MS = 20_000;
const EVALUATIONS = 8;
const FINALISTS = 3;
const SPACE = new URL("../../search-spaces/spaces/shapes-tiny.toml", import.meta.url);

let browser;
let page;
let search;
let worker;
const complaints = [];

before(async () => {
  const text = (await readFile(SPACE, "utf8"))
    .replace(/^\[limits\]\n.*$/m, "[limits]\nlatency_ms = 14")
    .replace(/^max_evaluations = .*$/m, `max_evaluations = ${EVALUATIONS}`)
    .replace(/^finalists = .*$/m, `finalists = ${FINALISTS}`);
  worker = await startWorker(DEVICE);
  search = await post("/v1/searches", { space: text, device: DEVICE, name: NAME });
  browser = await launch();
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(PATIENCE_MS);
  page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
});

after(async () => {
  if (search !== undefined) await post(`/v1/searches/${search.id}/cancel`).catch(() => {});
  await browser?.close();
});

/** Does what the worker is given until a job is one of `kind`, which is given back undone. */
async function workUntil(kind) {
  return until(`a job to ${kind}`, async () => {
    const job = await worker.lease();
    if (job?.input.kind === kind) return job;
    if (job !== null) await worker.finish(job);
    return undefined;
  }, 60);
}

/** Does everything that is left. */
async function workOff() {
  await until("the end of the search", async () => {
    const job = await worker.lease();
    if (job !== null) await worker.finish(job);
    return (await get(`/v1/searches/${search.id}`)).state === "done" ? true : undefined;
  }, 90);
}

test("a running job is shown with its progress as it goes on", async () => {
  const job = await workUntil("evaluate");
  await page.goto(`${BASE}/searches/${search.id}`);
  await page.getByRole("heading", { level: 1, name: NAME }).waitFor();
  const jobs = page.locator("section[aria-labelledby=jobs]");
  await worker.tell(job, 0.3, "training");
  await jobs.getByText(/^30\s%$/).waitFor();
  await worker.tell(job, 0.8, "sampling");
  await jobs.getByText(/^80\s%$/).waitFor();
  await jobs.getByText("sampling").waitFor();
  await worker.finish(job);
  await page.locator("a.mark").first().waitFor();
});

test("the front has error bars, the limit, and its verified points beside their predictions", async () => {
  await workOff();
  await page.locator("main .chip", { hasText: /^done$/ }).first().waitFor();
  const front = await get(`/v1/searches/${search.id}/front`);
  const verified = front.points.filter((point) => Object.keys(point.verified).length > 0);
  assert.ok(verified.length > 0, "nothing on the front was verified");
  const drawn = (path) => page.waitForFunction(([path, count]) => document.querySelectorAll(path).length === count, path);
  await drawn(["a.mark.front .whole", verified.length]);
  await drawn(["a.mark.front.broken .whole", verified.filter((point) => point.verified_within_limits === false).length]);
  assert.ok((await page.locator("a.mark.front path.error").count()) >= front.points.length, "the front lacks error bars");
  assert.equal(await page.locator("line.limit").count(), 1);
  const table = page.locator("section[aria-labelledby=front-table]");
  for (const { verified: figures } of verified) {
    await table.getByText(figures.latency_ms.value.toFixed(2)).first().waitFor();
  }
});

test("a candidate shows its layers, its figures, its loss and its samples with their prompts", async () => {
  const { points } = await get(`/v1/searches/${search.id}/front`);
  const { candidate_id, architecture } = points.find(({ verified }) => Object.keys(verified).length > 0);
  await page.goto(`${BASE}/candidates/${candidate_id}`);
  assert.equal(await page.locator(".unet .choice").count(), architecture.split(".").length);
  await page.getByRole("heading", { level: 2, name: "Quality by dimension" }).waitFor();
  await page.locator("section[aria-labelledby=figures] th", { hasText: "Verified" }).waitFor();
  await page.getByRole("img", { name: /^mean loss over training step/ }).waitFor();
  await page.locator("section[aria-labelledby=samples] li", { hasText: "a red circle moving left" }).waitFor();
  for (const name of [/animated$/, /frame by frame$/]) {
    const picture = page.getByRole("img", { name });
    await picture.waitFor();
    assert.ok(await picture.evaluate((image) => image.decode().then(() => image.naturalWidth > 0)), String(name));
  }
});

test("the browser had nothing to complain of", () => {
  assert.deepEqual(complaints, []);
});
