import { send } from "./client";

/** The bytes at `path`, fetched with the session's token, under the media type they are known to have. */
export async function blobAt(path: string, mediaType: string): Promise<Blob> {
  const response = await send(path, { headers: { accept: "*/*" } });
  return new Blob([await response.arrayBuffer()], { type: mediaType });
}

/** Hands bytes to the browser to be saved as `name`. */
export function save(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
