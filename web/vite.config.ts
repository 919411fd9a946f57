import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

/** Where `npm run dev` finds a coordinator. */
const coordinator = process.env["TEMPONAS_URL"] ?? "http://127.0.0.1:8080";

export default defineConfig({
  plugins: [svelte()],
  server: { proxy: { "/v1": coordinator, "/openapi.json": coordinator } },
  build: {
    target: "es2022",
    // The content security policy admits files of the coordinator only: no data URIs.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  test: { include: ["src/**/*.test.ts"] },
});
