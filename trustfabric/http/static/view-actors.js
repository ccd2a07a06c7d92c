// The supervision tree as last polled: each actor under its supervisor, the restless ones marked.

import { byId, el, reconcile, setAttr, setClass, setText } from "./dom.js";
import { age, visible } from "./text.js";
import { setBadge } from "./view-badges.js";

const CHILDREN_SHOWN = 20;
const RECENT_MS = 60000;

/** The rows to show, in tree order; a parent with very many children shows the restless ones first, then says how many more. */
export function actorRows(reports, restless) {
  const children = new Map();
  const known = new Set(reports.map(({ path }) => path));
  for (const report of reports) {
    const parent = report.path.slice(0, Math.max(0, report.path.lastIndexOf("/")));
    const key = known.has(parent) ? parent : "";
    if (!children.has(key)) children.set(key, []);
    children.get(key).push(report);
  }
  const rows = [];
  const visit = (parent, depth) => {
    const here = children.get(parent) ?? [];
    const first = here.length <= CHILDREN_SHOWN ? here
      : [...here].sort((a, b) => Number(restless(b)) - Number(restless(a))).slice(0, CHILDREN_SHOWN);
    for (const report of first) {
      rows.push({ key: report.path, depth, report });
      visit(report.path, depth + 1);
    }
    if (here.length > first.length) rows.push({ key: `${parent}/…`, depth, more: here.length - first.length });
  };
  visit("", 0);
  return rows;
}

/** One report under one set of names. */
export function actorOf(report) {
  const waiting = (report.waiting_on ?? []).join?.(", ") ?? "";
  return {
    path: String(report.path ?? ""),
    state: report.state ?? "unknown",
    restarts: report.restart_count ?? report.restarts?.length ?? Number(report.restarts ?? 0),
    mailbox: report.mailbox_depth ?? report.depth ?? 0,
    age: report.age_seconds ?? report.current_age_s ?? report.age ?? null,
    doing: `${report.current ?? report.current_message ?? ""}${waiting === "" ? "" : ` → ${waiting}`}`,
  };
}

export function actorsView() {
  const cache = new Map();
  const restartedAt = new Map();
  const counts = new Map();

  return function render({ reports, polledAt, note }, { nowMs, level }) {
    setText(byId("actors-note"), note !== "" ? note : noteText(reports, polledAt, nowMs, level));
    setAttr(byId("actors"), "data-live", String(level === "live"));
    for (const { path, restarts } of reports) {
      if (restarts > (counts.get(path) ?? restarts)) restartedAt.set(path, polledAt);
      counts.set(path, restarts);
    }
    const recent = (path) => nowMs - (restartedAt.get(path) ?? -Infinity) < RECENT_MS;
    const restless = (report) => report.state !== "running" || recent(report.path) || report.mailbox > 0;
    reconcile(byId("actor-list"), cache, actorRows(reports, restless).map((row) => ({ ...row, recent: recent(row.key) })),
      ({ key }) => key, actorRow);
  };
}

function noteText(reports, polledAt, nowMs, level) {
  if (polledAt === null) return "Waiting for the first report…";
  const when = level === "live" ? "" : ` · as it was ${age((nowMs - polledAt) / 1000)} ago`;
  return `${reports.length} actors${when}`;
}

function actorRow() {
  const [name, state, restarts, mailbox, alive, doing] = [
    el("span.actor-name.mono"), el("span.badge"), el("span.actor-fact"), el("span.actor-fact"), el("span.actor-fact.muted"),
    el("span.actor-doing.muted.mono")];
  const node = el("li.actor", {}, name, state, restarts, mailbox, alive, doing);
  return {
    node,
    update({ depth, report, more, recent }) {
      setClass(node, `actor depth-${Math.min(depth, 6)}${recent ? " recent" : ""}${more ? " more" : ""}`);
      if (more) {
        setText(name, `… ${more} more`);
        return;
      }
      setText(name, visible(report.path.slice(report.path.lastIndexOf("/") + 1), 60));
      setAttr(name, "title", visible(report.path, 200));
      setAttr(node, "data-path", report.path);
      setBadge(state, report.state);
      if (report.state === "running") setClass(state, "badge quiet");
      setText(restarts, report.restarts > 0 ? `${report.restarts} restart${report.restarts === 1 ? "" : "s"}` : "");
      setText(mailbox, report.mailbox > 0 ? `${report.mailbox} queued` : "");
      setText(alive, report.age === null ? "" : age(report.age));
      setText(doing, visible(report.doing, 80));
    },
  };
}
