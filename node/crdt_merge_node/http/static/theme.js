// Loaded before the page is drawn, so that a chosen theme never flashes the other one.
"use strict";
(function () {
  const KEY = "crdt-merge-node.theme";
  const THEMES = ["system", "light", "dark"];
  let theme = "system";
  try {
    const kept = localStorage.getItem(KEY);
    if (THEMES.includes(kept)) theme = kept;
  } catch {
    // Without storage the choice lasts as long as the page.
  }

  function show() {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
    document.dispatchEvent(new CustomEvent("theme"));
  }

  function next() {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // As above.
    }
    show();
  }

  show();
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", next);
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
})();
