// Badges: one place decides how a state looks, so that the same word never has two colours.

import { setAttr, setClass, setText } from "./dom.js";
import { shortTag, visible } from "./text.js";

const TONES = {
  restored: "good", trusted: "good", completed: "good", running: "busy", approved: "good", allowed: "good",
  quarantined: "bad", untrusted: "bad", failed: "bad", rejected: "bad", blocked: "bad", crashed: "bad", dead: "bad",
  remediating: "busy", suspect: "warn", unknown: "warn", expired: "warn", restarting: "warn", starting: "busy",
  waiting: "warn", stopping: "warn", dying: "bad", suspended: "busy",
};
const TAG_TONES = [
  [/pending-approval|held|unverified|transient-failure|executor-unavailable|investigate/, "warn"],
  [/failed|exhausted|denied|bug|no-playbook|rejected/, "bad"],
  [/running|awaiting-executor/, "busy"],
  [/complete/, "good"],
];

export function tone(word) {
  return TONES[word] ?? "calm";
}

export function setBadge(node, word, title = null) {
  setText(node, visible(word ?? "—", 60));
  setClass(node, `badge ${tone(word)}`);
  setAttr(node, "title", title);
}

export function setTag(node, tag) {
  const text = shortTag(tag);
  const quiet = text === "" || text === "none" || text === "monitor";
  setText(node, text === "" ? "—" : text);
  setClass(node, `tag ${quiet ? "calm" : (TAG_TONES.find(([pattern]) => pattern.test(text))?.[1] ?? "calm")}`);
  setAttr(node, "title", visible(tag ?? "", 80));
}
