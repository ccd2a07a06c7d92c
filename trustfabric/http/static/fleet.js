// Questions about registry rows at a given time: pure.

const SOON_MS = 60000;
const RANK = { quarantined: 0, remediating: 1, suspect: 3, restored: 4 };
export const LIFECYCLES = ["quarantined", "remediating", "suspect", "restored"];

/** `{kind: none | fresh | soon | stale, seconds}` to or since the deadline. Stale is deadline ≤ now, or the server's word. */
export function freshness(row, nowMs) {
  const deadline = Date.parse(row.freshness_deadline ?? "");
  if (Number.isNaN(deadline)) return { kind: "none", seconds: 0 };
  const left = deadline - nowMs;
  if (left <= 0 || row.stale === true) return { kind: "stale", seconds: Math.max(0, -left / 1000) };
  return { kind: left < SOON_MS ? "soon" : "fresh", seconds: left / 1000 };
}

export function isStale(row, nowMs) {
  return freshness(row, nowMs).kind === "stale";
}

/** How the attestation status may be shown: a stale row is never `trusted`. */
export function shownTrust(row, nowMs) {
  return row.attestation_status === "trusted" && isStale(row, nowMs) ? "expired" : row.attestation_status;
}

export function counts(rows, nowMs) {
  const totals = { all: 0, stale: 0, quarantined: 0, remediating: 0, suspect: 0, restored: 0 };
  for (const row of rows) {
    totals.all += 1;
    if (row.lifecycle_state in totals) totals[row.lifecycle_state] += 1;
    if (isStale(row, nowMs)) totals.stale += 1;
  }
  return totals;
}

export function matches(row, { state, text }, nowMs) {
  if (state === "stale" && !isStale(row, nowMs)) return false;
  if (state !== "all" && state !== "stale" && row.lifecycle_state !== state) return false;
  if (text === "") return true;
  const haystack = [row.server_name, row.instance_id, row.remediation_state, row.attestation_status, `#${row.vm_instance_id}`];
  return haystack.some((value) => String(value ?? "").toLowerCase().includes(text));
}

const names = new Intl.Collator(undefined, { numeric: true });
const byName = (a, b) =>
  names.compare(a.server_name ?? "", b.server_name ?? "") || a.vm_instance_id - b.vm_instance_id;

const attention = (row, nowMs) => {
  const rank = RANK[row.lifecycle_state] ?? 3;
  return rank > 2 && isStale(row, nowMs) ? 2 : rank;
};

/** One page of the matching rows: `{rows, matched, page, pages}`; a page past the end is the last one. */
export function pageOf(fleet, { filter, order, page, size }, nowMs) {
  const found = [...fleet.values()].filter((row) => matches(row, filter, nowMs));
  const sorted = order === "name" ? found.sort(byName) : byAttention(found, nowMs);
  const pages = Math.max(1, Math.ceil(sorted.length / size));
  const shown = Math.min(page, pages - 1);
  return { rows: sorted.slice(shown * size, (shown + 1) * size), matched: sorted.length, page: shown, pages };
}

// Buckets first: with a hundred thousand rows, comparing names within each is all the sorting that is left.
function byAttention(rows, nowMs) {
  const buckets = [[], [], [], [], []];
  rows.forEach((row) => buckets[attention(row, nowMs)].push(row));
  return buckets.flatMap((bucket) => bucket.sort((a, b) => a.vm_instance_id - b.vm_instance_id));
}
