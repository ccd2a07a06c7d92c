// What the page knows, and how each piece of news changes it: pure, no clock, no network, no DOM.

const RUNS_KEPT = 500;
const LINES_KEPT = 2000;
const ACTIVE = new Set(["pending", "running"]);

export function initialState() {
  return {
    /** Registry rows by instance id. */
    fleet: new Map(),
    /** Ids seen in the snapshot that is coming in; null when it is complete. */
    seen: null,
    loaded: false,
    runs: new Map(),
    runsLoaded: false,
    /** The log of the selected run, in order of seq. */
    log: { runId: null, lines: [], dropped: 0 },
  };
}

export function reduce(state, action) {
  switch (action.type) {
    case "trust-connected":
      return action.resumed ? state : { ...state, seen: new Set() };
    case "trust-frames":
      return action.frames.reduce(trustFrame, { ...state, fleet: new Map(state.fleet) });
    case "living":
      return { ...state, fleet: new Map([...state.fleet].filter(([id, row]) => action.ids.has(id) || row.version !== action.versions.get(id))) };
    case "runs-loaded":
      return { ...state, runsLoaded: true, runs: pruned(withRuns(state.runs, action.runs, action.requestedAt)) };
    case "remediation-frames":
      return remediationFrames(state, action);
    case "log-selected":
      return { ...state, log: { runId: action.runId, lines: [], dropped: 0 } };
    case "log-loaded":
      return action.runId === state.log.runId ? { ...state, log: withLines(state.log, action.lines) } : state;
    default:
      throw new Error(`unknown action ${action.type}`);
  }
}

function trustFrame(state, { event, data }) {
  if (event === "bookmark") return snapshotComplete(state);
  if (event !== "trust") return state;
  // A frame with a history id is news, not snapshot; before the first bookmark both may come.
  (Array.isArray(data) ? data : [data]).forEach((row) => {
    const id = instanceId(row);
    if (id === null) return;
    state.seen?.add(id);
    const merged = mergeRow(state.fleet.get(id), row);
    if (merged === null) state.fleet.delete(id);
    else state.fleet.set(id, merged);
  });
  return state;
}

function snapshotComplete(state) {
  if (state.seen === null) return { ...state, loaded: true };
  const { seen } = state;
  const fleet = new Map([...state.fleet].filter(([id]) => seen.has(id)));
  return { ...state, fleet, seen: null, loaded: true };
}

/** The newer of two registry rows; null when the instance is gone. An older version never replaces a newer one. */
export function mergeRow(known, incoming) {
  if (known !== undefined && incoming.version < known.version) return known;
  if (incoming.terminated_at !== null && incoming.terminated_at !== undefined) return null;
  return { ...known, ...incoming };
}

export function instanceId(record) {
  const id = record?.vm_instance_id ?? record?.runtime_vm_instance_id ?? record?.instance_id;
  return typeof id === "number" ? id : null;
}

function withRuns(runs, incoming, requestedAt) {
  const next = new Map(runs);
  incoming.forEach((run) => next.set(run.id, mergeRun(next.get(run.id), run, requestedAt)));
  return next;
}

/** A record that was asked for before the newest event arrived may be older than that event: its version decides. */
export function mergeRun(known, incoming, requestedAt) {
  const newer =
    known === undefined || !(incoming.version <= known.version) || requestedAt >= (known.patchedAt ?? -Infinity);
  if (!newer || (known?.version ?? 0) > incoming.version) return known;
  return { ...incoming, context: known?.context, patchedAt: null };
}

function remediationFrames(state, { frames, at }) {
  const runs = new Map(state.runs);
  const lines = [];
  for (const { event, data } of frames) {
    if (event !== "remediation" || typeof data?.run_id !== "number") continue;
    runs.set(data.run_id, patchedRun(runs.get(data.run_id), data, at));
    if (data.event?.event === "log" && data.run_id === state.log.runId) lines.push(data.event);
  }
  return { ...state, runs: pruned(runs), log: withLines(state.log, lines) };
}

function patchedRun(known, data, at) {
  const { manifest_tags, policy_feedback, policy_gate, accelerators } = data;
  const context = { manifest_tags, policy_feedback, policy_gate, accelerators };
  const run = known ?? { id: data.run_id, runtime_vm_instance_id: data.instance_id, playbook: data.playbook };
  if (data.event?.event !== "status") return { ...run, context, patchedAt: known ? run.patchedAt : at };
  const { status, approval_state, failure_reason, message } = data.event;
  return {
    ...run, context, patchedAt: at, status,
    approval_state: approval_state ?? run.approval_state,
    failure_reason: failure_reason ?? null,
    last_message: message ?? run.last_message,
  };
}

function pruned(runs) {
  if (runs.size <= RUNS_KEPT) return runs;
  const ended = [...runs.values()].filter((run) => !isActive(run)).sort((a, b) => a.id - b.id);
  ended.slice(0, runs.size - RUNS_KEPT).forEach((run) => runs.delete(run.id));
  return runs;
}

function withLines(log, incoming) {
  const fresh = incoming.filter((line) => Number.isInteger(line.seq) && isLog(line));
  if (fresh.length === 0) return log;
  const lines = new Map(log.lines.map((line) => [line.seq, line]));
  const firstKept = log.dropped > 0 ? (log.lines[0]?.seq ?? 0) : -Infinity;
  fresh.forEach((line) => {
    if (line.seq >= firstKept) lines.set(line.seq, lines.get(line.seq) ?? normalLine(line));
  });
  const ordered = [...lines.values()].sort((a, b) => a.seq - b.seq);
  const excess = Math.max(0, ordered.length - LINES_KEPT);
  return { ...log, lines: ordered.slice(excess), dropped: log.dropped + excess };
}

const isLog = (line) => (line.kind ?? line.event ?? "log") === "log";

function normalLine(line) {
  return { seq: line.seq, at: line.timestamp ?? line.at, stream: line.stream ?? "system", message: line.message ?? "" };
}

/** The instance that a run works on. */
export function runInstance(run) {
  return run.runtime_vm_instance_id ?? run.instance_id ?? null;
}

export function isActive(run) {
  return ACTIVE.has(run.status);
}

export function awaitsApproval(run) {
  return run.status === "pending" && run.approval_state === "pending";
}

/** Runs that wait for a person first, then active ones, then the newest. */
export function orderedRuns(runs) {
  const rank = (run) => (awaitsApproval(run) ? 0 : isActive(run) ? 1 : 2);
  return [...runs.values()].sort((a, b) => rank(a) - rank(b) || b.id - a.id);
}

/** The run that matters for an instance: its active one, else its newest. */
export function runOf(runs, id) {
  return orderedRuns(runs).find((run) => runInstance(run) === id) ?? null;
}
