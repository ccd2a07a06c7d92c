// The runs: those that wait for a person on top.

import { byId, el, reconcile, setAttr, setClass, setHidden, setText } from "./dom.js";
import { awaitsApproval, orderedRuns, runInstance } from "./store.js";
import { clockTime, visible } from "./text.js";
import { setBadge } from "./view-badges.js";

const SHOWN = 30;

/** What a run is doing, in one word: waiting for a person is not the same as waiting for a place. */
export function runWord(run) {
  if (awaitsApproval(run)) return "needs approval";
  return run.status === "pending" ? "queued" : run.status;
}

export function setRunBadge(node, run) {
  setBadge(node, runWord(run));
  if (awaitsApproval(run)) setClass(node, "badge warn");
}

export function runsView({ onSelect }) {
  const rows = new Map();
  return function render(state, { selectedRun }) {
    const ordered = orderedRuns(state.runs);
    const waiting = ordered.filter(awaitsApproval).length;
    reconcile(byId("run-list"), rows,
      ordered.slice(0, SHOWN).map((run) => ({ run, selectedRun, row: state.fleet.get(runInstance(run)) })),
      ({ run }) => run.id, () => runRow(onSelect));
    setHidden(byId("runs-empty"), ordered.length > 0 || !state.runsLoaded);
    const more = ordered.length > SHOWN ? `, first ${SHOWN} shown` : "";
    setText(byId("runs-count"), waiting > 0 ? `${waiting} waiting for approval${more}` : `${ordered.length} known${more}`);
    setClass(byId("runs-count"), waiting > 0 ? "warn-text" : "muted");
  };
}

function runRow(onSelect) {
  let id = null;
  const [number, playbook, where, status, when] = [
    el("span.mono.muted"), el("strong"), el("span.muted"), el("span.badge"), el("time.muted.small")];
  const button = el("button.run-row", { type: "button", onclick: () => onSelect(id) },
    el("span.run-main", {}, number, playbook), status, where, when);
  const node = el("li", {}, button);
  return {
    node,
    update({ run, selectedRun, row }) {
      id = run.id;
      setText(number, `#${run.id}`);
      setText(playbook, visible(run.playbook ?? "", 80));
      setText(where, visible(row?.server_name ?? `instance ${runInstance(run)}`, 80));
      setRunBadge(status, run);
      const at = run.completed_at ?? run.started_at ?? run.queued_at ?? run.created_at;
      setText(when, at ? clockTime(at) : "");
      setAttr(when, "datetime", at);
      setAttr(button, "aria-pressed", String(selectedRun === run.id));
      setAttr(button, "data-run", run.id);
    },
  };
}
