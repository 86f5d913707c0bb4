// What the usual tools check without judgement: names of controls, sizes of targets, ids, references, headings.
() => {
  const found = [];
  const visible = (element) => element.checkVisibility({ visibilityProperty: true });
  const short = (element) => element.outerHTML.slice(0, 90);
  const controls = "a[href], button, input, textarea, select, summary, [role=region], dialog[open], aside";
  for (const element of [...document.querySelectorAll(controls)].filter(visible)) {
    const ids = (element.getAttribute("aria-labelledby") ?? "").split(" ");
    const by = ids.map((id) => document.getElementById(id)?.textContent ?? "").join("");
    const label = element.labels?.length ? element.labels[0].textContent : "";
    const words = ["A", "BUTTON", "SUMMARY"].includes(element.tagName) ? element.textContent : "";
    if (!(element.getAttribute("aria-label") || by || label || words).trim()) found.push(`no name: ${short(element)}`);
    const { width, height } = element.getBoundingClientRect();
    const target = element.tagName === "BUTTON" && width > 1 && !element.classList.contains("document-title");
    if (target && Math.min(width, height) < 23.5) found.push(`small: ${short(element)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`twice: ${id}`);
  for (const name of ["for", "aria-describedby", "aria-labelledby"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      if (!document.getElementById(element.getAttribute(name))) found.push(`${name} names nothing: ${short(element)}`);
    }
  }
  const headings = [...document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)")].filter(visible);
  const levels = headings.map((heading) => Number(heading.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) found.push(`headings of level 1: ${levels}`);
  levels.reduce((before, level) => (level > before + 1 && found.push(`heading ${before} to ${level}`), level), 1);
  for (const image of document.querySelectorAll("img")) if (!image.hasAttribute("alt")) found.push("image without alt");
  if (!document.documentElement.lang || !document.title) found.push("language or title");
  return found;
}
