import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const FINDER = fileURLToPath(new URL("../../scripts/browser", import.meta.url));

/** Starts the Chromium that `scripts/browser` finds or fetches. */
export async function launch() {
  const found = JSON.parse(execFileSync(FINDER, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] }));
  const { chromium } = createRequire(`${found.playwright}/`)("playwright-core");
  return chromium.launch({ executablePath: found.executable, args: found.args });
}
