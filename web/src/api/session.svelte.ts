const KEY = "temponas.token";

/** The access token, kept for this tab only, and whether the coordinator asks for one. */
class Session {
  #token = $state<string | null>(sessionStorage.getItem(KEY));
  /** The coordinator refused a request for want of a (valid) token. */
  demanded = $state(false);

  get token(): string | null {
    return this.#token;
  }

  signIn(token: string): void {
    sessionStorage.setItem(KEY, token);
    this.#token = token;
    this.demanded = false;
  }

  signOut(): void {
    sessionStorage.removeItem(KEY);
    this.#token = null;
    this.demanded = true;
  }

  headers(): Record<string, string> {
    return this.#token === null ? {} : { authorization: `Bearer ${this.#token}` };
  }
}

export const session = new Session();
