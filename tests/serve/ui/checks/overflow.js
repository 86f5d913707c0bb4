// Whatever stands out to the right of the window, or scrolls sideways, except what is meant to (code, tables).
() => {
  const wide = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) wide.push(`page ${root.scrollWidth} > ${root.clientWidth}`);
  const scrolls = (element) => {
    if (!element) return false;
    const own = /auto|scroll/.test(getComputedStyle(element).overflowX) && element.matches("pre, .scroll-x, .row");
    return own || scrolls(element.parentElement);
  };
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || element.closest(".unseen, svg") || scrolls(element.parentElement)) continue;
    const { width, right } = element.getBoundingClientRect();
    if (width && right > root.clientWidth + 0.5) wide.push(`${element.localName}.${element.className} to ${right}`);
  }
  for (const view of document.querySelectorAll(".view, .log, .page")) {
    if (view.checkVisibility() && view.scrollWidth > view.clientWidth) wide.push(`${view.className} scrolls sideways`);
  }
  return wide;
}
