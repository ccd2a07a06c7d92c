// Signing in and out. The token passes through the form into one request and is kept nowhere on the page.

import { get, post, remove } from "./api.js";
import { byId, setHidden, setText } from "./dom.js";
import { visible } from "./text.js";

/** `onSignedIn(session)` whenever there is a session to work with. */
export function sessionView({ onSignedIn }) {
  const [form, field, error] = [byId("sign-in-form"), byId("token"), byId("sign-in-error")];
  let busy = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    const token = field.value.trim();
    field.value = "";
    try {
      const session = await post("/api/session", { token });
      enter(session?.sub === undefined ? await get("/api/session") : session);
    } catch (failure) {
      setText(error, failure.status === 401 ? "This token was not accepted." : visible(failure.message));
      field.focus();
    } finally {
      busy = false;
    }
  });

  const enter = (session) => {
    setText(error, "");
    setHidden(byId("sign-in"), true);
    setHidden(byId("app"), false);
    history.replaceState(null, "", "/");
    setText(byId("who"), `user ${visible(session.sub, 40)} · ${visible(session.role, 40)}`);
    onSignedIn(session);
  };

  return {
    async resume() {
      try {
        enter(await get("/api/session"));
      } catch (failure) {
        this.ask(failure.status === 401 ? "" : failure.message);
      }
    },
    ask(message) {
      setHidden(byId("app"), true);
      setHidden(byId("sign-in"), false);
      setText(error, visible(message));
      field.focus();
    },
    async leave() {
      await remove("/api/session");
    },
  };
}
