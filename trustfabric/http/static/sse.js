// Server-sent events over fetch: unlike EventSource it sees heartbeats, statuses and its own silence.

/** Feed it text in any pieces; it calls `onFrame({id, event, data})`, `onRetry(ms)`. Lines end in \n, \r\n or \r. */
export class FrameParser {
  #rest = "";
  #frame = { id: null, event: "message", data: [] };
  #callbacks;

  constructor(callbacks) {
    this.#callbacks = callbacks;
  }

  push(text) {
    this.#rest += text;
    // A \r at the very end may be half of \r\n: it waits for the next piece.
    const held = this.#rest.endsWith("\r") ? 1 : 0;
    const lines = this.#rest.slice(0, this.#rest.length - held).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + (held ? "\r" : "");
    lines.forEach((line) => this.#line(line));
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return undefined;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#frame.event = value;
    else if (field === "data") this.#frame.data.push(value);
    else if (field === "id" && !value.includes("\0")) this.#frame.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.#callbacks.onRetry?.(Number(value));
    return undefined;
  }

  #dispatch() {
    const { id, event, data } = this.#frame;
    this.#frame = { id: null, event: "message", data: [] };
    if (data.length > 0 || id !== null) this.#callbacks.onFrame({ id, event, data: data.join("\n") });
  }
}

/** Wait before the n-th attempt in a row (1, 2, …): exponential, at most 30 s, the upper half of it random. */
export function backoff(attempt, retryMs, random) {
  const ceiling = Math.min(30000, Math.max(250, retryMs) * 2 ** Math.min(attempt - 1, 10));
  return ceiling / 2 + (ceiling / 2) * random();
}

const SILENCE_MS = 40000; // heartbeats come every 15 s: two were missed
const STEADY_MS = 5000; // a connection that lived this long was a good one

/**
 * One stream that stays connected until `stop()`. `onFrame` gets every data frame parsed; `onState` gets
 * `connecting`, `live` (with `resumed`), `lagging`, `waiting` (with `retryAt`, `reason`) and `ended` (401 or 403);
 * `onAlive` every sign of life. After `reset` it starts over from a snapshot.
 */
export class EventStream {
  #url;
  #snapshotUrl;
  #handlers;
  #lastId = null;
  #inSnapshot = false;
  #retryMs = 1000;
  #attempt = 0;
  #stopped = false;
  #abort = null;
  #wake = null;

  constructor({ url, snapshotUrl = url, ...handlers }) {
    this.#url = url;
    this.#snapshotUrl = snapshotUrl;
    this.#handlers = handlers;
  }

  async run() {
    while (!this.#stopped) {
      const began = performance.now();
      let reason;
      try {
        reason = await this.#connect();
      } catch (error) {
        reason = error.reason ?? (error.name === "AbortError" ? "no heartbeat" : "connection lost");
      }
      if (this.#stopped) return;
      if (reason === "ended") return;
      this.#attempt = performance.now() - began > STEADY_MS ? 1 : this.#attempt + 1;
      const wait = reason === "reset" ? 0 : backoff(this.#attempt, this.#retryMs, Math.random);
      this.#handlers.onState({ state: "waiting", reason, retryInMs: wait });
      await this.#pause(wait);
    }
  }

  stop() {
    this.#stopped = true;
    this.#abort?.abort();
    this.#wake?.();
  }

  /** Try again at once, for the reader's button or the network coming back. */
  hurry() {
    this.#wake?.();
  }

  async #connect() {
    const resumed = this.#lastId !== null;
    this.#inSnapshot = !resumed && this.#snapshotUrl !== this.#url;
    const headers = { Accept: "text/event-stream" };
    if (resumed) headers["Last-Event-ID"] = this.#lastId;
    this.#handlers.onState({ state: "connecting" });
    const abort = new AbortController();
    this.#abort = abort;
    let watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      const response = await fetch(resumed ? this.#url : this.#snapshotUrl, {
        headers, credentials: "same-origin", cache: "no-store", signal: abort.signal,
      });
      this.#handlers.onResponse?.(response);
      if (response.status === 401 || response.status === 403) {
        this.#handlers.onState({ state: "ended", status: response.status });
        return "ended";
      }
      if (!response.ok) return `the server answered ${response.status}`;
      this.#handlers.onState({ state: "live", resumed });
      const parser = new FrameParser({
        onFrame: (frame) => this.#frame(frame),
        onRetry: (ms) => { this.#retryMs = ms; },
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return "closed by the server";
        clearTimeout(watchdog);
        watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
        this.#handlers.onAlive();
        parser.push(value);
      }
    } finally {
      clearTimeout(watchdog);
      abort.abort();
    }
  }

  #frame({ id, event, data }) {
    if (event === "reset") {
      this.#lastId = null;
      throw Object.assign(new Error("reset"), { reason: "reset" });
    }
    if (event === "lagged") this.#handlers.onState({ state: "lagging" });
    const parsed = parse(data);
    if (parsed !== undefined || event === "bookmark") this.#handlers.onFrame({ event, data: parsed ?? null });
    if (event === "bookmark") this.#inSnapshot = false;
    // Only what was handed over is never asked for again, and half a snapshot is no position to resume from.
    if (id !== null && id !== "" && !this.#inSnapshot) this.#lastId = id;
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => { clearTimeout(timer); resolve(); };
    });
  }
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return undefined;
  }
}
