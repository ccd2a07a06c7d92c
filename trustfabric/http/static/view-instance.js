// One instance: what is known about it, why it is not placed, and how it came here.

import { byId, el, fact, reconcile, setAttr, setHidden, setText } from "./dom.js";
import { shownTrust } from "./fleet.js";
import { clockTime, shortTag, visible } from "./text.js";
import { setBadge } from "./view-badges.js";
import { setFreshness } from "./view-fleet.js";

const FACTS = {
  server: "Server", id: "Instance id", attestation: "Attestation", fresh: "Freshness", tag: "Remediation",
  attempts: "Attempts", provenance: "Provenance", updated: "Updated",
};

export function instanceView({ onRun }) {
  const facts = Object.fromEntries(Object.entries(FACTS).map(([key, label]) => [key, fact(label)]));
  byId("instance-facts").append(...Object.values(facts).map(({ node }) => node));
  const [attestation, fresh] = [el("span"), el("span")];
  facts.attestation.value.append(attestation);
  facts.fresh.value.append(fresh);
  const openRun = el("button.link", { type: "button" });
  facts.run = fact("Run");
  facts.run.value.append(openRun);
  byId("instance-facts").append(facts.run.node);
  openRun.addEventListener("click", () => onRun(Number(openRun.dataset.run)));
  const [events, notes] = [new Map(), new Map()];

  return function render(row, { now, history, placement, run }) {
    setHidden(byId("instance-empty"), row !== null);
    setHidden(byId("instance-body"), row === null);
    setHidden(byId("instance-state"), row === null);
    setText(byId("instance-title"), row === null ? "Instance" : visible(row.instance_id, 60));
    if (row === null) return;
    setBadge(byId("instance-state"), row.lifecycle_state);
    setText(facts.server.value, `${visible(row.server_name ?? "", 80)} (#${row.server_id})`);
    setText(facts.id.value, `#${row.vm_instance_id} · version ${row.version}`);
    setBadge(attestation, shownTrust(row, now), `Last verdict: ${row.attestation_status}`);
    setFreshness(fresh, row, now);
    setText(facts.tag.value, visible(row.remediation_state ?? "—", 80));
    setText(facts.attempts.value, String(row.remediation_attempts ?? 0));
    setText(facts.provenance.value, visible(row.provenance_ref ?? "—", 200));
    setText(facts.updated.value, clockTime(row.updated_at ?? row.triggered_at));
    setHidden(facts.run.node, run === null);
    if (run !== null) {
      setText(openRun, `#${run.id} ${run.status}`);
      setAttr(openRun, "data-run", run.id);
    }
    renderPlacement(placement, notes);
    setText(byId("history-note"), history.note);
    reconcile(byId("history"), events, history.events, (event) => event.id, eventView);
  };
}

function renderPlacement(placement, cache) {
  setHidden(byId("placement"), placement === null);
  if (placement === null) return;
  const verdict = byId("placement-verdict");
  setHidden(verdict, placement.allowed === null);
  setBadge(verdict, placement.allowed ? "allowed" : "blocked");
  reconcile(byId("placement-notes"), cache, placement.notes.map((text, index) => ({ text, index })),
    ({ index }) => index, () => {
      const node = el("li.mono");
      return { node, update: ({ text }) => setText(node, visible(text, 500)) };
    });
}

/** The gate's answer in either form it may have; null when there is nothing to show. */
export function placementOf(answer) {
  const notes = answer?.notes ?? answer?.reasons;
  if (!Array.isArray(notes)) return null;
  const words = [...notes, ...(answer.policy_notes ?? [])].map((note) => (typeof note === "string" ? note : (note?.note ?? JSON.stringify(note))));
  return { allowed: answer.allowed ?? (typeof answer.blocked === "boolean" ? !answer.blocked : null), notes: words };
}

/** A history row under one set of names, whether it came from the table or from the stream. */
export function transitionOf(row) {
  return {
    id: row.history_id ?? row.id,
    from: row.previous_lifecycle_state ?? null,
    to: row.current_lifecycle_state ?? row.lifecycle_state,
    status: row.current_status ?? row.attestation_status,
    reason: row.transition_reason ?? "",
    tag: row.remediation_state,
    actor: row.actor ?? "",
    at: row.triggered_at ?? row.at,
    version: row.registry_version ?? row.version,
  };
}

function eventView() {
  const [to, status, from] = [el("span"), el("span"), el("span.muted")];
  const [reason, meta, time] = [el("span.reason"), el("span.muted.small"), el("time.mono")];
  const node = el("li", {}, el("div.event-line", {}, time, from, to, status), el("div.event-line", {}, reason, meta));
  return {
    node,
    update(event) {
      setText(time, clockTime(event.at));
      setAttr(time, "datetime", event.at);
      setAttr(time, "title", visible(event.at, 40));
      const moved = event.from !== null && event.from !== event.to;
      setText(from, moved ? `${visible(event.from, 20)} →` : "");
      setBadge(to, event.to);
      setBadge(status, event.status);
      setText(reason, visible(event.reason, 500));
      setText(meta, [`v${event.version}`, shortTag(event.tag), visible(event.actor, 80)].filter(Boolean).join(" · "));
    },
  };
}
