// The token, where the server asks for one: kept for this tab only, asked for once however many requests wait for it.

import { byId } from "./dom.js";

const KEY = "almanac.token";
let waiting = null;

export const token = () => sessionStorage.getItem(KEY);
export const forgetToken = () => sessionStorage.removeItem(KEY);

/** The headers that prove who asks. */
export function authorization() {
  const held = token();
  return held ? { Authorization: `Bearer ${held}` } : {};
}

/**
 * Asks the person for a token after a request that carried `used` was refused. True when there is another one to try,
 * false when the person closed the dialog.
 */
export function askToken(used) {
  if (token() && token() !== used) return Promise.resolve(true); // another request has got a new one meanwhile
  waiting ??= open(Boolean(used)).finally(() => {
    waiting = null;
  });
  return waiting;
}

function open(refused) {
  const dialog = byId("token-dialog");
  const field = byId("token-field");
  byId("token-refused").hidden = !refused;
  field.value = "";
  field.setAttribute("aria-invalid", String(refused));
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = field.value.trim();
        field.value = "";
        if (dialog.returnValue !== "use" || !given) return resolve(false);
        sessionStorage.setItem(KEY, given);
        return resolve(true);
      },
      { once: true },
    );
    dialog.returnValue = "";
    dialog.showModal();
    field.focus();
  });
}
