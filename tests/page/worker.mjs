/** A worker that measures and trains nothing: its figures follow from what is asked, so that a page has all of them. */
import { randomUUID } from "node:crypto";
import { post, upload } from "./coordinator.mjs";

const RUNTIME = { name: "stand-in", version: "1" };
const EVALUATOR = "a stand-in (right on held-out clips: consistency 1.00)";
const CAPTIONS = ["a red circle moving left", "a green square moving up"];
/** Milliseconds of a block by its operator; the UNet's own blocks take one. */
const LATENCY_MS = { conv1d: 0.5, conv3d: 2, self_attention1d: 0.7, self_attention3d: 2.5, cross_attention1d: 0.4, cross_attention3d: 0.9 };
/** Operators by their code in an architecture, and what they are worth there. */
const CODES = { c1: "conv1d", c3: "conv3d", s1: "self_attention1d", s3: "self_attention3d", x1: "cross_attention1d", x3: "cross_attention3d" };
const GAIN = { c1: 0.25, c3: 0.5, s1: 0.2, s3: 0.45, x1: 0.05, x3: 0.1 };
/** The blocks of the demo's UNet together, and how much longer it takes as a whole than its blocks say. */
const BACKBONE_MS = 12;
const WHOLE = 1.03;
const PIXEL = {
  png: "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
  gif: "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
};

/** Registers a worker on a device of its own and gives what it can do. */
export async function startWorker(device) {
  const id = randomUUID();
  await post("/v1/workers", {
    id,
    name: "stand-in",
    device: { name: device, description: "measures nothing", memory_bytes: 2 ** 30 },
    runtime: RUNTIME,
    kinds: ["profile", "evaluate", "verify"],
    evaluators: ["built-in"],
    memory_bytes: 2 ** 30,
  });
  return {
    /** The next job, or null when there is none in time. */
    lease: () => post("/v1/leases", { worker_id: id, wait_seconds: 2 }),
    /** Says how far an evaluation is, with the loss so far. */
    tell: ({ job_id, lease_token }, progress, status) =>
      post(`/v1/jobs/${job_id}/heartbeat`, { lease_token, progress, status, curve: curve(progress) }),
    async finish(job) {
      const { job_id, lease_token, input } = job;
      if (input.kind === "evaluate") await this.tell(job, 1, "done");
      const result = await RESULTS[input.kind](input);
      await post(`/v1/jobs/${job_id}/result`, { lease_token, result });
    },
  };
}

const RESULTS = {
  profile: ({ blocks }) => ({
    outcome: {
      kind: "profile",
      runtime: RUNTIME,
      entries: blocks.map((block) => ({ block, dtype: "f32", state: "measured", ...samplesOf(block) })),
    },
  }),
  async evaluate({ architecture }) {
    const scores = CAPTIONS.map((caption) => ({ caption, values: { color: qualityOf(architecture) } }));
    return {
      device_seconds: { train: 2, sample: 1, score: 0.5 },
      artifacts: [
        await artifact("sheet", "samples.png", "image/png", Buffer.from(PIXEL.png, "base64")),
        await artifact("animation", "samples.gif", "image/gif", Buffer.from(PIXEL.gif, "base64")),
        await artifact("scores", "scores.json", "application/json", Buffer.from(JSON.stringify(scores))),
      ],
      outcome: {
        kind: "evaluate",
        evaluator: EVALUATOR,
        metrics: { quality: figure(qualityOf(architecture), 0.02), color: figure(0.9, 0.01), train_loss: figure(0.1) },
      },
    };
  },
  verify: ({ architecture }) => ({
    device_seconds: { profile: 1 },
    outcome: {
      kind: "verify",
      runtime: RUNTIME,
      metrics: { latency_ms: figure(verifiedMs(architecture), 0.1), peak_memory_bytes: figure(3e6) },
      latency_ms_samples: [0.99, 1, 1.01].map((factor) => factor * verifiedMs(architecture)),
    },
  }),
};

function figure(value, standard_error = 0) {
  return { value, standard_error };
}

function samplesOf({ operator }) {
  const latency = LATENCY_MS[operator] ?? 1;
  return { latency_ms: [0.97, 1, 1.03].map((factor) => factor * latency), peak_memory_bytes: [1e5, 1e5, 1e5] };
}

/** Adds up `worth` over an architecture's layers. */
function total(architecture, worth) {
  return architecture.split(".").reduce((sum, code) => sum + (worth(code) ?? 0), 0);
}

function qualityOf(architecture) {
  return 0.1 + 0.8 * (1 - Math.exp(-total(architecture, (code) => GAIN[code])));
}

function verifiedMs(architecture) {
  return WHOLE * (BACKBONE_MS + total(architecture, (code) => LATENCY_MS[CODES[code]]));
}

function curve(progress) {
  const steps = Math.round(progress * 10);
  return Array.from({ length: steps }, (_, index) => ({ step: 10 * (index + 1), loss: 1 / (index + 2) }));
}

async function artifact(role, name, media_type, content) {
  return { role, digest: await upload(content, media_type), name, media_type, bytes: content.length };
}
