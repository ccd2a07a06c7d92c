// How far what is shown can be believed: one record per source, and its wording at a given time.

const LATE_MS = 20000; // heartbeats come every 15 s
const CATCH_UP_MS = 5000;
const POLL_LATE_MS = 12000;

/** `kind` is `stream` or `poll`; times are performance.now() milliseconds. */
export function newConnection(kind) {
  return { kind, state: "connecting", reason: "", since: 0, lastAliveAt: null, retryAt: null };
}

export function changed(connection, change, nowMs) {
  const { state, reason = "", retryInMs = null } = change;
  return {
    ...connection, state, reason, since: nowMs,
    lastAliveAt: state === "live" ? nowMs : connection.lastAliveAt,
    retryAt: retryInMs === null ? null : nowMs + retryInMs,
  };
}

/** A sign of life. A stream that lagged counts as caught up once it has been served for a while. */
export function alive(connection, nowMs) {
  const caughtUp = connection.state === "lagging" && nowMs - connection.since > CATCH_UP_MS;
  return { ...connection, state: caughtUp ? "live" : connection.state, lastAliveAt: nowMs };
}

/** `{level: live | late | down | off, text, age}`: only `live` may be shown as current. `age` in seconds, or null. */
export function standing(connection, nowMs) {
  const age = connection.lastAliveAt === null ? null : (nowMs - connection.lastAliveAt) / 1000;
  switch (connection.state) {
    case "live":
      return age * 1000 > (connection.kind === "poll" ? POLL_LATE_MS : LATE_MS)
        ? { level: "late", text: "silent", age }
        : { level: "live", text: "live", age };
    case "lagging":
      return { level: "late", text: "catching up", age };
    case "waiting":
      return { level: "down", text: retryText(connection, nowMs), age };
    case "ended":
      return { level: "off", text: "signed out", age };
    case "unavailable":
      return { level: "off", text: connection.reason, age };
    default:
      return { level: age === null ? "late" : "down", text: age === null ? "connecting" : "reconnecting", age };
  }
}

function retryText({ reason, retryAt }, nowMs) {
  const seconds = Math.max(0, Math.ceil((retryAt - nowMs) / 1000));
  return `${reason || "down"}, retry in ${seconds} s`;
}
