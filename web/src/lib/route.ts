export type Route =
  | { page: "searches" }
  | { page: "search"; id: string }
  | { page: "candidate"; id: string }
  | { page: "unknown" };

/** Which page a path shows. */
export function routeOf(path: string): Route {
  const parts = path.split("/").filter(Boolean);
  if (parts.length === 0) return { page: "searches" };
  const [collection, id] = parts;
  if (parts.length === 2 && id !== undefined) {
    if (collection === "searches") return { page: "search", id: decodeURIComponent(id) };
    if (collection === "candidates") return { page: "candidate", id: decodeURIComponent(id) };
  }
  return parts.length === 1 && collection === "searches" ? { page: "searches" } : { page: "unknown" };
}
