/**
 * The page in a real browser against a running coordinator (TEMPONAS_URL, default http://127.0.0.1:8080) and a
 * real search over a table: `node --test tests/page`. No worker is needed.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { launch } from "./browser.mjs";
import { BASE, eventsSoFar, get, post, until, upload } from "./coordinator.mjs";
import { MAX_EVALUATIONS, space, table } from "./space.mjs";

const NAME = `page-test-${Date.now().toString(36)}`;
const PATIENCE_MS = 20_000;

let browser;
let context;
let page;
let search;
/** What the browser complained of: errors of scripts, of the content security policy, of requests. */
const complaints = [];

before(async () => {
  const digest = await upload(Buffer.from(table()), "text/csv");
  search = await post("/v1/searches", { space: space(NAME), table: digest, name: NAME });
  // Held early, so that there are evaluations still to come when the page is open.
  await post(`/v1/searches/${search.id}/pause`);
  browser = await launch();
  context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(PATIENCE_MS);
  page = await context.newPage();
  watch(page);
});

after(async () => {
  await browser?.close();
});

function watch(page) {
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
}

/** How many candidates the chart shows; 0 while it is empty. */
async function drawn(page) {
  return page.locator("a.mark").count();
}

async function evaluated() {
  const { budget } = await get(`/v1/searches/${search.id}`);
  return budget.evaluations;
}

test("the list shows the search with its state and leads to it", async () => {
  await until("the pause", async () => {
    const { state } = await get(`/v1/searches/${search.id}`);
    assert.notEqual(state, "done", "the search ended before it could be paused");
    return state === "paused" ? state : undefined;
  });
  await page.goto(`${BASE}/`);
  const entry = page.locator("li", { has: page.getByRole("link", { name: NAME }) });
  await entry.waitFor();
  assert.match(await entry.innerText(), /paused/);
  assert.match(await entry.innerText(), new RegExp(`of ${MAX_EVALUATIONS}`));
  await entry.getByRole("link", { name: NAME }).click();
  await page.getByRole("heading", { level: 1, name: NAME }).waitFor();
  assert.equal(new URL(page.url()).pathname, `/searches/${search.id}`);
});

test("new points appear without a reload once the search is resumed", async () => {
  await page.getByRole("button", { name: "Resume" }).waitFor();
  const [points, evaluations] = [await drawn(page), await evaluated()];
  assert.ok(evaluations < MAX_EVALUATIONS, `all ${evaluations} evaluations were done before the page was open`);
  await page.evaluate(() => (globalThis.stillTheSamePage = true));

  await page.getByRole("button", { name: "Resume" }).click();
  await page.waitForFunction((before) => document.querySelectorAll("a.mark").length > before, points);
  await page.locator("main .chip", { hasText: /^done$/ }).first().waitFor({ timeout: 60_000 });
  await page.waitForFunction(
    (all) => document.querySelector("[data-evaluations]")?.getAttribute("data-evaluations") === String(all),
    MAX_EVALUATIONS,
  );
  assert.equal(await page.evaluate(() => globalThis.stillTheSamePage), true, "the page was loaded anew");
});

test("the chart shows what the coordinator says: every candidate, its front, its references", async () => {
  const front = await get(`/v1/searches/${search.id}/front`);
  assert.ok(front.points.length >= 3, `a front of ${front.points.length}`);
  await page.waitForFunction((all) => document.querySelectorAll("a.mark").length === all, MAX_EVALUATIONS);
  const members = await page.locator("a.mark.front").evaluateAll((marks) => marks.map((mark) => mark.dataset.number));
  assert.deepEqual(members.map(Number).sort((a, b) => a - b), front.points.map(({ number }) => number).sort((a, b) => a - b));
  const texts = (await page.locator("figure text").allTextContents()).map((text) => text.trim());
  for (const text of ["nothing anywhere", "narrow"]) assert.ok(texts.includes(text), `no label ${text}`);
  assert.ok(texts.some((text) => /limit 30.ms/.test(text)), "the limit is not drawn");
  const rows = page.locator("section[aria-labelledby=front-table] tbody tr");
  assert.equal(await rows.count(), front.points.length);
});

test("axes can be chosen", async () => {
  await page.getByLabel("y axis").selectOption("latency_ms");
  await page.getByLabel("x axis").selectOption("accuracy");
  await page.getByRole("group", { name: /^latency against accuracy/ }).waitFor();
  await page.reload();
  await page.getByRole("group", { name: /^accuracy against latency/ }).waitFor();
});

test("the keyboard moves from point to point and opens a candidate", async () => {
  const first = page.locator("a.mark[tabindex='0']");
  await first.focus();
  await page.keyboard.press("ArrowRight");
  const focused = await page.evaluate(() => {
    const { id, number } = document.activeElement?.dataset ?? {};
    return { id, number: Number(number) };
  });
  assert.ok(focused.id, "no point has the focus");
  await page.locator(".tip").waitFor();
  await page.keyboard.press("Enter");
  await page.waitForURL(`${BASE}/candidates/${focused.id}`);

  const candidate = await get(`/v1/candidates/${focused.id}`);
  assert.equal(candidate.number, focused.number);
  await page.getByRole("heading", { level: 1, name: candidate.reference ?? `Candidate ${candidate.number}` }).waitFor();
  const { latency_ms } = { ...candidate.predicted, ...candidate.measured };
  const row = page.locator("section[aria-labelledby=figures] tr", { hasText: "latency" });
  assert.ok((await row.innerText()).includes(latency_ms.value.toFixed(2)), await row.innerText());
  const text = await page.locator("main").innerText();
  for (const { position } of candidate.layers) assert.ok(text.includes(position.replace(".", " ")), position);
});

test("a candidate's address opens by itself, and the way back leads to its search", async () => {
  await page.reload();
  await page.getByRole("heading", { level: 2, name: "Architecture" }).waitFor();
  await page.getByRole("link", { name: NAME }).click();
  await page.getByRole("heading", { level: 1, name: NAME }).waitFor();
});

test("a broken stream is said quietly, and is taken up after the last event", async () => {
  const [event] = (await eventsSoFar(search.id)).slice(-2);
  const [, id] = /^id: ?(.+)$/m.exec(event) ?? [];
  assert.ok(id, `an event without its number: ${event}`);
  const other = await context.newPage();
  watch(other);
  const asked = [];
  const events = `${BASE}/v1/searches/${search.id}/events`;
  await other.route(events, async (route) => {
    asked.push(route.request().headers()["last-event-id"]);
    // The first stream carries one real event and breaks; the second fails; then the way is free.
    if (asked.length === 1) {
      await route.fulfill({ status: 200, headers: { "content-type": "text/event-stream" }, body: `${event}\n\n` });
    } else if (asked.length === 2) {
      await route.fulfill({ status: 503, headers: { "content-type": "application/problem+json" }, body: "{}" });
    } else {
      await route.continue();
    }
  });
  await other.goto(`${BASE}/searches/${search.id}`);
  await other.getByText("connection lost, trying again…").waitFor();
  await until("the third try", async () => (asked.length >= 3 ? true : undefined));
  await other.getByText("connection lost, trying again…").waitFor({ state: "detached" });
  // First what the snapshot has seen, then the event that came last.
  assert.deepEqual(asked.slice(0, 3), [String(Number(id) + 1), id, id]);
  await other.close();
  assert.equal(complaints.splice(0).filter((text) => !text.includes("503")).join("\n"), "");
});

test("an unknown id is said with the way out", async () => {
  const stranger = "01900000-0000-7000-8000-000000000000";
  await page.goto(`${BASE}/searches/${stranger}`);
  await page.getByRole("alert").waitFor();
  await page.getByRole("alert").getByRole("link").click();
  await page.getByRole("link", { name: NAME }).waitFor();
  assert.equal(complaints.splice(0).filter((text) => !text.includes("404")).join("\n"), "");
});

test("nothing is wider than a phone", async () => {
  await page.setViewportSize({ width: 360, height: 740 });
  const candidates = await get(`/v1/searches/${search.id}/candidates?limit=1`);
  for (const path of ["/", `/searches/${search.id}`, `/candidates/${candidates.items[0].id}`]) {
    await page.goto(BASE + path);
    await page.locator("main .card").first().waitFor();
    const excess = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(excess <= 0, `${path} is ${excess} px too wide`);
  }
});

test("the browser had nothing to complain of", () => {
  assert.deepEqual(complaints, []);
});
