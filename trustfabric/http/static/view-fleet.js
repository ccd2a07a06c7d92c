// The fleet: state tiles that filter, and one page of rows updated in place.

import { byId, el, reconcile, setAttr, setClass, setHidden, setText } from "./dom.js";
import { counts, freshness, LIFECYCLES, pageOf, shownTrust } from "./fleet.js";
import { age, duration, visible } from "./text.js";
import { setBadge, setTag } from "./view-badges.js";

const PAGE_SIZE = 50;
const TILES = ["all", ...LIFECYCLES, "stale"];

/** `onSelect(id)` when a row is chosen; `onChange()` when what is asked for changed. */
export function fleetView({ onSelect, onChange }) {
  const query = { filter: { state: "all", text: "" }, order: "attention", page: 0, size: PAGE_SIZE };
  const rows = new Map();
  const ask = (change) => {
    Object.assign(query, { page: 0 }, change);
    onChange();
  };
  const tiles = TILES.map((state) => tile(state, () => ask({ filter: { ...query.filter, state } })));
  byId("tiles").append(...tiles.map(({ node }) => node));
  byId("search").addEventListener("input", (event) =>
    ask({ filter: { ...query.filter, text: event.target.value.trim().toLowerCase() } }));
  byId("order").addEventListener("change", (event) => ask({ order: event.target.value }));
  byId("previous").addEventListener("click", () => ask({ page: query.page - 1 }));
  byId("next").addEventListener("click", () => ask({ page: query.page + 1 }));

  return function render(state, { now, selected }) {
    const totals = counts(state.fleet.values(), now);
    tiles.forEach((view) => view.update(totals, query.filter.state));
    const found = pageOf(state.fleet, query, now);
    query.page = found.page;
    reconcile(byId("fleet-rows"), rows, found.rows.map((row) => ({ row, now, selected })),
      ({ row }) => row.vm_instance_id, () => rowView(onSelect));
    setText(byId("fleet-count"), countText(totals.all, found.matched));
    setText(byId("fleet-empty"), emptyText(state, found));
    setHidden(byId("fleet-empty"), found.matched > 0);
    renderPager(found);
  };
}

function countText(all, matched) {
  return matched === all ? `${all} instance${all === 1 ? "" : "s"}` : `${matched} of ${all} instances`;
}

function emptyText(state, found) {
  if (found.matched > 0) return "";
  if (!state.loaded && state.fleet.size === 0) return "Waiting for the registry…";
  return state.fleet.size === 0 ? "No instances yet. Create and start a server." : "No instance matches.";
}

function renderPager({ matched, page, pages }) {
  setHidden(byId("pager"), pages <= 1);
  const first = page * PAGE_SIZE + 1;
  setText(byId("page-label"), `${first}–${Math.min(matched, first + PAGE_SIZE - 1)} of ${matched}`);
  setAttr(byId("previous"), "disabled", page === 0);
  setAttr(byId("next"), "disabled", page >= pages - 1);
}

function tile(state, onclick) {
  const number = el("strong", {}, "0");
  const node = el("button.tile", { type: "button", "data-state": state, onclick }, number,
    el("span", {}, state === "all" ? "all instances" : state));
  return {
    node,
    update(totals, chosen) {
      setText(number, String(totals[state]));
      setAttr(node, "aria-pressed", String(chosen === state));
      setAttr(node, "data-zero", totals[state] === 0);
    },
  };
}

function rowView(onSelect) {
  let id = null;
  const [server, instance] = [el("strong"), el("span.mono.muted")];
  const choose = el("button.row-button", { type: "button" }, server, instance);
  const [lifecycle, attestation, tag] = [el("span.badge"), el("span.badge"), el("span.tag")];
  const [attempts, fresh, version] = [el("span"), el("span"), el("span.muted")];
  const cell = (label, content, shape = "span.cell") => el(shape, { role: "cell", "data-label": label }, content);
  const node = el("div.grid-row", { role: "row", onclick: () => onSelect(id) },
    el("span.cell.cell-name", { role: "cell" }, choose),
    cell("Lifecycle", lifecycle), cell("Attestation", attestation), cell("Remediation", tag),
    cell("Attempts", attempts, "span.cell.number"), cell("Freshness", fresh, "span.cell.number"),
    cell("Version", version, "span.cell.number"));
  return {
    node,
    update({ row, now, selected }) {
      id = row.vm_instance_id;
      setText(server, visible(row.server_name ?? `server ${row.server_id}`, 80));
      setText(instance, visible(row.instance_id, 80));
      setAttr(node, "data-id", id);
      setAttr(choose, "aria-pressed", String(selected === id));
      setBadge(lifecycle, row.lifecycle_state);
      setBadge(attestation, shownTrust(row, now), `Last verdict: ${row.attestation_status}`);
      setTag(tag, row.remediation_state);
      setText(attempts, row.remediation_attempts > 0 ? String(row.remediation_attempts) : "–");
      setFreshness(fresh, row, now);
      setText(version, `v${row.version}`);
    },
  };
}

/** The countdown, in words that stay true between two updates. */
export function setFreshness(node, row, now) {
  const { kind, seconds } = freshness(row, now);
  const words = { none: "none", stale: `stale ${age(seconds)}`, fresh: duration(seconds), soon: duration(seconds) };
  setText(node, words[kind]);
  setClass(node, `freshness ${kind}`);
  setAttr(node, "title", row.freshness_deadline ? `Deadline ${visible(row.freshness_deadline, 40)}` : "No freshness deadline");
}
