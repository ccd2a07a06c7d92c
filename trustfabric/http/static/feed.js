// Everything that comes in: the two streams, the lists behind them, the actor poll. News is batched into the store.

import { ApiError, get, getAll } from "./api.js";
import { observe } from "./clock.js";
import { alive, changed, newConnection } from "./connection.js";
import { EventStream } from "./sse.js";
import { runInstance } from "./store.js";

const RUNS = "/api/trust/remediation/runs";
const POLL_MS = 5000;
const LARGE_FLEET = 5000;
const LOG_PAGES = 20;
const LIVING_MS = 30000;
const LIVING_ROWS = 1000;

/**
 * `dispatch(action)` gets the news, `getState()` is read, `onChange()` asks for a rendering, `onEnded()` is the end of the session,
 * `onInstance(ids)` names the instances that changed.
 */
export class Feed {
  connections = { trust: newConnection("stream"), remediation: newConnection("stream"), actors: newConnection("poll") };
  actors = { reports: [], polledAt: null, note: "" };
  incidents = [];
  #hooks;
  #streams = [];
  #queues = { trust: [], remediation: [] };
  #flushTimer = null;
  #pollTimer = null;
  #livingTimer = null;
  #refetching = new Map();
  #stopped = false;

  constructor(hooks) {
    this.#hooks = hooks;
  }

  start() {
    const trust = "/api/trust/registry/stream";
    this.#streams = [
      this.#stream("trust", { url: trust, snapshotUrl: `${trust}?snapshot=true` }),
      this.#stream("remediation", { url: "/api/trust/remediation/stream" }),
    ];
    this.#streams.forEach((stream) => stream.run());
    this.#poll();
    this.#livingTimer = setTimeout(() => this.#checkLiving(), LIVING_MS);
  }

  stop() {
    this.#stopped = true;
    this.#streams.forEach((stream) => stream.stop());
    [this.#flushTimer, this.#pollTimer, this.#livingTimer, ...this.#refetching.values()].forEach(clearTimeout);
  }

  hurry() {
    this.#streams.forEach((stream) => stream.hurry());
  }

  /** Read one run again soon; several wishes within a moment become one request. */
  refetchRun(id) {
    if (this.#refetching.has(id) || this.#stopped) return;
    this.#refetching.set(id, setTimeout(() => {
      this.#refetching.delete(id);
      this.readRun(id);
    }, 150));
  }

  readRun(id) {
    return this.#runs(`${RUNS}/${id}`);
  }

  /** The stored lines of a run, page after page; what comes live meanwhile is merged by its number. */
  async loadLog(runId, after = 0) {
    let position = after;
    for (let page = 0; page < LOG_PAGES && !this.#stopped; page += 1) {
      const lines = await get(`${RUNS}/${runId}/logs?after=${position}`);
      if (!Array.isArray(lines) || lines.length === 0) return;
      this.#dispatch({ type: "log-loaded", runId, lines });
      const last = Math.max(...lines.map(({ seq }) => seq));
      if (!(last > position) || this.#hooks.getState().log.runId !== runId) return;
      position = last;
    }
  }

  #stream(name, urls) {
    return new EventStream({
      ...urls,
      onFrame: (frame) => this.#enqueue(name, frame),
      onAlive: () => { this.connections[name] = alive(this.connections[name], performance.now()); },
      onResponse: (response) => observe(response.headers.get("Date")),
      onState: (change) => this.#state(name, change),
    });
  }

  #state(name, change) {
    if (this.#stopped) return;
    this.connections[name] = changed(this.connections[name], change, performance.now());
    if (change.state === "ended") return this.#hooks.onEnded();
    if (change.state === "live" && name === "trust") this.#dispatch({ type: "trust-connected", resumed: change.resumed });
    if (change.state === "live" && name === "remediation" && !change.resumed) this.#loadRuns();
    return this.#hooks.onChange();
  }

  // The stream is open before the lists are read, so nothing falls between the two.
  async #loadRuns() {
    await this.#runs(`${RUNS}?limit=100`);
    await this.#runs(`${RUNS}?status=pending&approval_state=pending&limit=100`);
    const { runId, lines } = this.#hooks.getState().log;
    if (runId !== null) await this.loadLog(runId, lines.at(-1)?.seq ?? 0).catch(() => {});
  }

  async #runs(path) {
    const requestedAt = performance.now();
    try {
      const answer = await get(path);
      this.#dispatch({ type: "runs-loaded", runs: Array.isArray(answer) ? answer : [answer], requestedAt });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // the stream's own state says that the runtime is away
    }
  }

  #enqueue(name, frame) {
    if (frame.event === "bookmark" && this.connections[name].state === "lagging") {
      this.connections[name] = changed(this.connections[name], { state: "live" }, performance.now());
    }
    this.#queues[name].push(frame);
    // A timer, not an animation frame: those stand still in a hidden tab, and the queue would grow.
    const wait = this.#hooks.getState().fleet.size > LARGE_FLEET ? 150 : 16;
    this.#flushTimer ??= setTimeout(() => this.#flush(), wait);
  }

  #flush() {
    this.#flushTimer = null;
    const { trust, remediation } = this.#queues;
    this.#queues = { trust: [], remediation: [] };
    if (this.#stopped) return;
    if (trust.length > 0) {
      this.#dispatch({ type: "trust-frames", frames: trust });
      this.#hooks.onInstance(new Set(trust.map(({ data }) => data?.vm_instance_id)));
    }
    if (remediation.length === 0) return;
    this.#dispatch({ type: "remediation-frames", frames: remediation, at: performance.now() });
    remediation.forEach(({ data }) => {
      const unknown = this.#hooks.getState().runs.get(data?.run_id)?.version === undefined;
      if (Number.isInteger(data?.run_id) && (unknown || data.event?.event === "status")) this.refetchRun(data.run_id);
    });
    this.#hooks.onInstance(new Set(remediation.map(({ data }) => (data ? runInstance(data) : null))));
  }

  // Removing an instance changes no trust, so no event tells of it: the list of the living does. The larger, the rarer.
  async #checkLiving() {
    const versions = new Map([...this.#hooks.getState().fleet].map(([id, row]) => [id, row.version]));
    try {
      if (document.visibilityState === "visible" && this.connections.trust.state === "live") {
        const ids = new Set();
        for await (const row of getAll("/api/trust/registry?limit=200")) ids.add(row.vm_instance_id);
        this.#dispatch({ type: "living", ids, versions });
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
    const rounds = Math.max(1, Math.ceil(versions.size / LIVING_ROWS));
    if (!this.#stopped) this.#livingTimer = setTimeout(() => this.#checkLiving(), LIVING_MS * rounds);
  }

  #dispatch(action) {
    if (!this.#stopped) this.#hooks.dispatch(action);
  }

  async #poll() {
    if (document.visibilityState === "visible" || this.actors.polledAt === null) {
      await this.#readIncidents();
      await this.#readActors();
    }
    if (!this.#stopped) this.#pollTimer = setTimeout(() => this.#poll(), POLL_MS);
  }

  // What is held stays shown while nothing answers: a banner too long harms less than one too short.
  async #readIncidents() {
    try {
      const answer = await get("/api/trust/incidents?open=true&limit=20");
      this.incidents = Array.isArray(answer) ? answer : [];
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }

  async #readActors() {
    try {
      const answer = await get("/api/system/actors");
      const reports = Array.isArray(answer) ? answer : (answer.actors ?? []);
      this.actors = { reports, polledAt: performance.now(), note: "" };
      this.connections.actors = changed(this.connections.actors, { state: "live" }, performance.now());
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const refused = error.status === 403 || error.status === 404;
      if (refused) this.actors = { ...this.actors, reports: [], note: error.status === 403 ? "Not shown to your role." : "Not offered by this runtime." };
      const change = refused ? { state: "unavailable", reason: "not offered" } : { state: "waiting", reason: "no answer", retryInMs: POLL_MS };
      this.connections.actors = changed(this.connections.actors, change, performance.now());
    }
    this.#hooks.onChange();
  }
}
