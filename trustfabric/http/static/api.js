// Calls to the runtime's REST interface with the cookie session; every failure becomes one ApiError.

import { observe } from "./clock.js";

export class ApiError extends Error {
  /** `slug` is the last part of the problem type; `status` 0 means that nothing answered. */
  constructor(status, slug, detail) {
    super(detail);
    this.status = status;
    this.slug = slug;
  }
}

let onUnauthorized = () => {};

export function whenUnauthorized(callback) {
  onUnauthorized = callback;
}

export const get = async (path) => (await call("GET", path)).json();
export const post = async (path, body) => (await call("POST", path, body)).json();
export const remove = (path) => call("DELETE", path);

/** Every item of a list, page by page as its `Link` header leads. */
export async function* getAll(path) {
  for (let next = path; next !== undefined; ) {
    const response = await call("GET", next);
    yield* await response.json();
    next = /<(\/api\/[^>]*)>;\s*rel="?next"?/.exec(response.headers.get("Link") ?? "")?.[1];
  }
}

async function call(method, path, body) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRF-Token"] = csrfToken();
  if (method === "POST" && path !== "/api/session") headers["Idempotency-Key"] = randomKey();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, credentials: "same-origin", cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(15000),
    });
  } catch {
    throw new ApiError(0, "unreachable", "The runtime did not answer.");
  }
  observe(response.headers.get("Date"));
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401 && path !== "/api/session") onUnauthorized();
  throw new ApiError(response.status, slugOf(problem.type), problem.detail ?? problem.error ?? response.statusText);
}

function slugOf(type) {
  return typeof type === "string" ? type.split(/[/:#]/).pop() : "";
}

function csrfToken() {
  const pair = document.cookie.split("; ").find((cookie) => cookie.startsWith("tf_csrf="));
  return pair === undefined ? "" : decodeURIComponent(pair.slice("tf_csrf=".length));
}

// crypto.randomUUID exists on secure origins only; a lab machine may be reached over plain HTTP.
function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
