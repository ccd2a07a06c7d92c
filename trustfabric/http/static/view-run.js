// One run: its facts, the decision it may wait for, and its log.

import { byId, el, fact, reconcile, setAttr, setHidden, setText } from "./dom.js";
import { awaitsApproval, runInstance } from "./store.js";
import { age, clockTime, duration, visible } from "./text.js";
import { logView } from "./view-log.js";
import { setRunBadge } from "./view-runs.js";

const FACTS = {
  instance: "Instance", approval: "Approval", requested: "Requested by", attempt: "Attempt", sla: "SLA", result: "Outcome", hash: "Content",
};

/** `onDecide(run, newState, notes)` resolves when decided, or rejects with an ApiError whose message is shown. */
export function runView({ onDecide }) {
  const facts = Object.fromEntries(Object.entries(FACTS).map(([key, label]) => [key, fact(label)]));
  byId("run-facts").append(...Object.values(facts).map(({ node }) => node));
  const chips = new Map();
  const form = approvalForm(onDecide);
  const renderLog = logView();

  return function render(run, { state, now, session, current }) {
    setHidden(byId("run-empty"), run !== null);
    setHidden(byId("run-body"), run === null);
    setHidden(byId("run-state"), run === null);
    setText(byId("run-title"), run === null ? "Run" : `Run #${run.id} · ${visible(run.playbook ?? "", 80)}`);
    form.update(run, { session, current });
    if (run === null) return;
    setRunBadge(byId("run-state"), run);
    const row = state.fleet.get(runInstance(run));
    setText(facts.instance.value, visible(row?.instance_id ?? `#${runInstance(run)}`, 80));
    setText(facts.approval.value, approvalText(run));
    setText(facts.requested.value, person(run.requested_by));
    setText(facts.attempt.value, String(run.attempt ?? "—"));
    setText(facts.sla.value, slaText(run, now));
    setText(facts.result.value, outcomeText(run));
    setText(facts.hash.value, run.content_sha256 ? `sha256 ${visible(String(run.content_sha256).slice(0, 16))}…` : "—");
    setAttr(facts.hash.value, "title", run.content_sha256 ? `SHA-256 ${visible(run.content_sha256, 80)}` : null);
    reconcile(byId("run-context"), chips, contextOf(run), (text) => text, chip);
    setHidden(byId("run-context"), chips.size === 0);
    renderLog(state.log);
  };
}

function person(value) {
  if (value === null || value === undefined) return "—";
  return /^\d+$/.test(String(value)) ? `user ${value}` : visible(value, 80);
}

function approvalText(run) {
  const by = run.approval_decided_by === null || run.approval_decided_by === undefined ? "" : ` by ${person(run.approval_decided_by)}`;
  const notes = run.approval_notes ? `: ${visible(run.approval_notes, 500)}` : "";
  return `${visible(run.approval_state ?? "—", 40)}${by}${notes}`;
}

function slaText(run, now) {
  const deadline = Date.parse(run.sla_deadline ?? "");
  if (Number.isNaN(deadline)) return "—";
  if (run.completed_at || run.cancelled_at) return `until ${clockTime(run.sla_deadline)}`;
  const left = (deadline - now) / 1000;
  return left > 0 ? `${duration(left)} left` : `missed ${age(-left)} ago`;
}

function outcomeText(run) {
  const words = [run.failure_reason, run.last_error ?? run.cancellation_reason ?? run.last_message].filter(Boolean);
  return words.length === 0 ? "—" : words.map((word) => visible(word, 300)).join(": ");
}

function contextOf(run) {
  const { manifest_tags = [], policy_feedback = [], policy_gate = {}, accelerators = [] } = run.context ?? {};
  const posture = accelerators.map((item) => `${item.accelerator_id}: ${item.posture}`);
  return [...new Set([...manifest_tags, ...(policy_gate.remediation_hooks ?? []), ...policy_feedback, ...posture].map(String))].slice(0, 40);
}

function chip(text) {
  const node = el("li.chip.mono", {}, visible(text, 200));
  return { node, update() {} };
}

function approvalForm(onDecide) {
  let [shown, busy] = [null, false];
  const [form, notes, error] = [byId("approval"), byId("approval-notes"), byId("approval-error")];
  const decide = async (newState) => {
    const run = shown;
    busy = true;
    setText(error, "");
    refresh(true);
    try {
      await onDecide(run, newState, notes.value.trim());
      if (shown?.id === run.id) notes.value = "";
    } catch (failure) {
      if (shown?.id === run.id) setText(error, visible(failure.message, 500));
    } finally {
      busy = false;
    }
  };
  const refresh = (blocked) => [byId("approve"), byId("reject")].forEach((button) => setAttr(button, "disabled", blocked));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!byId("approve").disabled) decide("approved");
  });
  byId("reject").addEventListener("click", () => decide("rejected"));
  return {
    update(run, { session, current }) {
      if (run?.id !== shown?.id) {
        notes.value = "";
        setText(error, "");
        byId("approval-what").open = false;
      }
      shown = run;
      setHidden(form, run === null || !awaitsApproval(run));
      if (form.hidden) return;
      const why = blockedWhy(run, session, current);
      setText(byId("approval-blocked"), why);
      setText(byId("approval-snapshot"), snapshotText(run));
      refresh(busy || why !== "");
    },
  };
}

/** Why a decision is not offered now; empty when it is. It must rest on what the reader sees, so that must be current. */
function blockedWhy(run, session, current) {
  if (session?.role === "viewer") return "Viewers can't decide.";
  if (!current) return "Not offered while the remediation stream is not live.";
  if (!Number.isInteger(run.version) || (run.patchedAt ?? null) !== null) return "Loading the newest version…";
  return "";
}

function snapshotText(run) {
  const { playbook_snapshot: snapshot = null, automation_payload: payload = null, content_sha256: hash = null } = run;
  const shown = JSON.stringify({ playbook: snapshot, payload, content_sha256: hash }, null, 2);
  return shown.split("\n").map((line) => visible(line, 2000)).join("\n");
}
