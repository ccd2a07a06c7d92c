// The server's clock, followed by a monotonic one: a wrong or jumping local clock makes nothing look fresher.

let offset = Date.now() - performance.now();
let known = false;

/** Milliseconds since the epoch by the server's clock (by ours until the first answer came). */
export function serverNow() {
  return performance.now() + offset;
}

/** Take the `Date` header of an answer. It has whole seconds: half of one is added, and small drift is left alone. */
export function observe(header) {
  const stated = Date.parse(header ?? "");
  if (Number.isNaN(stated)) return;
  const measured = stated + 500 - performance.now();
  if (known && Math.abs(measured - offset) < 1000) return;
  offset = measured;
  known = true;
}
