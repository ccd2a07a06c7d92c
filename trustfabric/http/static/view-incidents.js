// The banner of storm control: that automatic runs are held, and what the fallen VMs have in common.

import { byId, setHidden, setText } from "./dom.js";
import { visible } from "./text.js";

/** `onNews(text)` once when automation is held, and when it goes on. */
export function incidentsView({ onNews }) {
  let told = "";

  return function render(incidents) {
    const [first] = incidents;
    setHidden(byId("incident-banner"), first === undefined);
    const more = incidents.length > 1 ? ` (and ${incidents.length - 1} more)` : "";
    const text = first === undefined ? "" : `Automatic runs are held: ${visible(String(first.summary))}${more}`;
    setText(byId("incident-text"), text);
    const now = incidents.map(({ id }) => id).join(" ");
    if (now !== told) onNews(first === undefined ? "Automatic runs go on." : text);
    told = now;
  };
}
