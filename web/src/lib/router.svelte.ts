import { type Route, routeOf } from "./route";

/** The page at the browser's address; links within the page are followed without a reload. */
class Router {
  route = $state.raw<Route>(routeOf(location.pathname));

  constructor() {
    addEventListener("popstate", () => (this.route = routeOf(location.pathname)));
    document.addEventListener("click", (event) => {
      const link = (event.target as Element).closest<HTMLAnchorElement | SVGAElement>("a[href]");
      const href = link?.getAttribute("href");
      const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
      if (!plain || event.defaultPrevented || !href?.startsWith("/") || href.startsWith("/v1/")) return;
      if (routeOf(href).page === "unknown") return;
      event.preventDefault();
      this.go(href);
    });
  }

  go(path: string): void {
    if (path !== location.pathname) history.pushState(null, "", path);
    this.route = routeOf(path);
    scrollTo(0, 0);
  }
}

export const router = new Router();
