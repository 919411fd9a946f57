import type { ProblemDocument } from "./types";

/** Why a request did not give what was asked, with what the reader can do about it. */
export class Problem extends Error {
  override readonly name = "Problem";

  constructor(
    /** The HTTP status; 0 when no answer came. */
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly fields: { field: string; message: string }[] = [],
  ) {
    super(`${title}: ${detail}`);
  }

  static unreachable(): Problem {
    return new Problem(
      0,
      "No answer from the coordinator",
      "Check that `temponas serve` is running and that this page was opened at its address.",
    );
  }

  /** Reads a problem document, or says what came instead of one. */
  static async from(response: Response): Promise<Problem> {
    const body = (await response.json().catch(() => null)) as Partial<ProblemDocument> | null;
    if (body === null || typeof body.title !== "string") {
      return new Problem(response.status, `Status ${response.status}`, "The answer was no problem document.");
    }
    const fields = (body.errors ?? []).map(({ field, message }) => ({ field, message }));
    return new Problem(response.status, body.title, body.detail ?? "", fields);
  }

  static of(error: unknown): Problem {
    return error instanceof Problem ? error : new Problem(0, "This page failed", String(error));
  }
}
