// Runs before the first paint, so that a chosen theme never flashes the other one. The choice is the only thing kept.
(() => {
  try {
    const kept = localStorage.getItem("almanac.theme");
    if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  } catch {
    document.documentElement.dataset.theme = "";
  }
})();
