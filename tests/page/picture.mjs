/**
 * Photographs a page for the README: `node tests/page/picture.mjs URL FILE [WIDTHxHEIGHT] [dark] [full]`, such as
 *   node tests/page/picture.mjs http://127.0.0.1:8080/searches/ID assets/pictures/search.png
 * `full` takes the whole page instead of the part that a window of that size shows.
 */
import { launch } from "./browser.mjs";

const USAGE = "usage: node tests/page/picture.mjs URL FILE [WIDTHxHEIGHT] [dark] [full]";
const USUAL_SIZE = "1280x860";
const PATIENCE_MS = 20_000;

function parse([url, file, ...options]) {
  const sizes = options.filter((option) => /^\d+x\d+$/.test(option));
  const unknown = options.filter((option) => !sizes.includes(option) && option !== "dark" && option !== "full");
  if (file === undefined || !URL.canParse(url) || unknown.length > 0 || sizes.length > 1) throw new Error(USAGE);
  const [width, height] = (sizes[0] ?? USUAL_SIZE).split("x").map(Number);
  return { url, file, viewport: { width, height }, dark: options.includes("dark"), fullPage: options.includes("full") };
}

async function photograph({ url, file, viewport, dark, fullPage }) {
  const browser = await launch();
  try {
    // Still: no pulse of a new point, no animation caught half-way.
    const settings = { viewport, colorScheme: dark ? "dark" : "light", reducedMotion: "reduce" };
    const page = await browser.newPage(settings);
    page.setDefaultTimeout(PATIENCE_MS);
    await page.goto(url);
    await page.locator("main .card").first().waitFor();
    await page.locator("main [role=status]", { hasText: /^(Reading|connecting)/ }).first().waitFor({ state: "detached" });
    await page.screenshot({ path: file, fullPage });
  } finally {
    await browser.close();
  }
}

try {
  await photograph(parse(process.argv.slice(2)));
} catch (error) {
  console.error(error.message.split("\n")[0]);
  process.exitCode = 1;
}
