// What is read about the chosen instance: its history and the gate's notes, again whenever it changes.

import { ApiError, get } from "./api.js";
import { placementOf, transitionOf } from "./view-instance.js";

const HISTORY_SHOWN = 25;
const SETTLE_MS = 200;

export class Details {
  id = null;
  history = { events: [], note: "" };
  placement = null;
  #serverId = null;
  #timer = null;
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  choose(id, serverId) {
    if (id === this.id) return;
    clearTimeout(this.#timer);
    Object.assign(this, { id, history: { events: [], note: id === null ? "" : "Reading…" }, placement: null });
    this.#timer = null;
    this.#serverId = serverId;
    if (id !== null) this.#read();
  }

  /** News about these instances: read again soon if the chosen one is among them. */
  changed(ids) {
    if (this.id === null || !ids.has(this.id)) return;
    this.#timer ??= setTimeout(() => this.#read(), SETTLE_MS);
  }

  async #read() {
    this.#timer = null;
    const [id, serverId] = [this.id, this.#serverId];
    const [history, placement] = await Promise.all([readHistory(id), readPlacement(serverId)]);
    if (id !== this.id) return;
    this.history = history.events === null ? { ...this.history, note: history.note } : history;
    this.placement = placement;
    this.#onChange();
  }
}

async function readHistory(id) {
  try {
    const answer = await get(`/api/trust/registry/${id}/history?limit=${HISTORY_SHOWN}`);
    const events = (answer.events ?? []).map(transitionOf);
    return { events, note: events.length >= HISTORY_SHOWN ? `Newest ${HISTORY_SHOWN} transitions` : "" };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return { events: null, note: `History could not be read: ${error.message}` };
  }
}

// Optional on older runtimes: no answer means no panel, never an empty "nothing blocks".
async function readPlacement(serverId) {
  try {
    return placementOf(await get(`/api/servers/${serverId}/placement`));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return null;
  }
}
