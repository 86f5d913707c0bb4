// The button between the light and the dark theme. The choice is the only thing kept.

import { el, icon } from "./dom.js";

const THEME = "almanac.theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function darkNow() {
  const kept = document.documentElement.dataset.theme;
  return kept ? kept === "dark" : dark.matches;
}

export function themeButton() {
  const words = el("span", { class: "unseen" }, "Dark theme");
  const made = el("button", { type: "button", class: "button square", id: "theme", title: "Light or dark" }, words);
  const draw = () => {
    made.querySelector("svg")?.remove();
    made.prepend(icon(darkNow() ? "sun" : "moon"));
    made.setAttribute("aria-pressed", String(darkNow()));
  };
  made.addEventListener("click", () => {
    const next = darkNow() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem(THEME, next);
    } catch (error) {
      console.info("The theme lasts until this page is closed:", error.name);
    }
    draw();
  });
  dark.addEventListener("change", draw);
  draw();
  return made;
}
