// The page: wires the feed to the store and the store to the views.

import { post, whenUnauthorized } from "./api.js";
import { serverNow } from "./clock.js";
import { Details } from "./details.js";
import { byId, setAttr, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { initialState, isActive, orderedRuns, reduce, runInstance, runOf } from "./store.js";
import { visible } from "./text.js";
import { actorOf, actorsView } from "./view-actors.js";
import { connectionsView } from "./view-connections.js";
import { fleetView } from "./view-fleet.js";
import { incidentsView } from "./view-incidents.js";
import { instanceView } from "./view-instance.js";
import { runView } from "./view-run.js";
import { runsView } from "./view-runs.js";
import { sessionView } from "./view-session.js";

const ENDED = "#ended";
let state = initialState();
let session = null;
let feed = null;
let selectedRun = null;
let chosenByHand = false;

const details = new Details(() => schedule());
const views = {
  incidents: incidentsView({ onNews: announce }),
  connections: connectionsView({ onRetry: () => feed?.hurry(), onNews: announce }),
  fleet: fleetView({ onSelect: (id) => { chosenByHand = true; selectInstance(id); }, onChange: () => schedule() }),
  instance: instanceView({ onRun: (id) => selectRun(id) }),
  runs: runsView({ onSelect: (id) => { chosenByHand = true; selectRun(id); } }),
  run: runView({ onDecide: decide }),
  actors: actorsView(),
};
const signIn = sessionView({ onSignedIn: begin });

function dispatch(action) {
  state = reduce(state, action);
  if (!chosenByHand) followAttention();
  schedule();
}

// Until the reader chooses, the page shows what waits for a person, and the instance that it is about.
function followAttention() {
  const [first] = orderedRuns(state.runs);
  const current = state.runs.get(selectedRun);
  if (first !== undefined && first.id !== selectedRun && (current === undefined || !isActive(current))) selectRun(first.id);
  else if (details.id === null && current !== undefined) selectRun(selectedRun);
}

function selectInstance(id) {
  details.choose(id, state.fleet.get(id)?.server_id);
  const run = id === null ? null : runOf(state.runs, id);
  if (run !== null) openRun(run.id);
  schedule();
}

function selectRun(id) {
  openRun(id);
  const instance = runInstance(state.runs.get(id) ?? {});
  if (state.fleet.has(instance)) details.choose(instance, state.fleet.get(instance).server_id);
  schedule();
}

function openRun(id) {
  if (id === selectedRun) return;
  selectedRun = id;
  state = reduce(state, { type: "log-selected", runId: id });
  feed?.loadLog(id).catch(() => {}); // the connection pills say why, and a reconnection reads it again
}

async function decide(run, newState, notes) {
  const body = { new_state: newState, expected_version: run.version };
  const requestedAt = performance.now();
  if (notes !== "") body.approval_notes = notes;
  try {
    const answer = await post(`/api/trust/remediation/runs/${run.id}/approval`, body);
    announce(`Run ${run.id} ${newState}.`);
    const decided = answer?.run ?? answer;
    if (Number.isInteger(decided?.id)) dispatch({ type: "runs-loaded", runs: [decided], requestedAt });
    feed?.refetchRun(run.id);
  } catch (error) {
    await feed?.readRun(run.id); // the reader decides again on what is true now
    throw error;
  }
}

function announce(text) {
  setText(byId("announcer"), text);
}

function announceChanges(ids) {
  details.changed(ids);
  const row = details.id === null ? undefined : state.fleet.get(details.id);
  if (row !== undefined && ids.has(details.id)) announce(visible(`${row.server_name}: ${row.lifecycle_state}, ${row.attestation_status}`));
}

// Rendering: at most once per frame, and after a long one a pause, so that a huge fleet leaves the page usable.
let pending = false;
let notBefore = 0;

function schedule() {
  if (pending || feed === null) return;
  pending = true;
  setTimeout(() => requestAnimationFrame(render), Math.max(0, notBefore - performance.now()));
}

function render() {
  pending = false;
  if (feed === null) return;
  const began = performance.now();
  const now = serverNow();
  const standings = views.connections(feed.connections, began);
  views.incidents(feed.incidents);
  // Rows that a new snapshot has not confirmed yet are not current either.
  const confirmed = standings.trust.level === "live" && !(state.loaded && state.seen !== null);
  setAttr(byId("fleet"), "data-live", String(confirmed));
  setAttr(byId("instance"), "data-live", String(confirmed));
  const current = standings.remediation.level === "live";
  setAttr(byId("runs"), "data-live", String(current));
  setAttr(byId("run"), "data-live", String(current));
  views.fleet(state, { now, selected: details.id });
  views.instance(state.fleet.get(details.id) ?? null, { now, ...details, run: runOf(state.runs, details.id) });
  views.runs(state, { selectedRun });
  views.run(state.runs.get(selectedRun) ?? null, { state, now, session, current });
  views.actors({ ...feed.actors, reports: feed.actors.reports.map(actorOf) }, { nowMs: began, level: standings.actors.level });
  const took = performance.now() - began;
  notBefore = performance.now() + (took > 12 ? took * 4 : 0);
}

function begin(signedIn) {
  session = signedIn;
  feed = new Feed({ dispatch, getState: () => state, onChange: schedule, onInstance: announceChanges, onEnded: () => leave(ENDED) });
  feed.start();
  schedule();
}

// Everything that the last reader saw leaves with the page itself.
function leave(hash) {
  if (feed === null) return;
  feed.stop();
  feed = null;
  history.replaceState(null, "", `/${hash}`);
  location.reload();
}

byId("sign-out").addEventListener("click", async () => {
  try {
    await signIn.leave();
  } catch (error) {
    if (error.status !== 401) return announce(`Signing out failed: ${error.message}`);
  }
  return leave("");
});
whenUnauthorized(() => leave(ENDED));
addEventListener("online", () => feed?.hurry());
setInterval(schedule, 1000);
if (location.hash === ENDED) signIn.ask("Your session has ended. Sign in again.");
else signIn.resume();
