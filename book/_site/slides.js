// A deck: fit each slide to its size, then hand over to reveal.js.
const SIZE = { width: 1280, height: 720 };

// Wide formulas, tables and code shrink to the width; then all of a slide to its room.
function fit(slide) {
  const body = slide.querySelector(".body");
  if (!body) return;
  const room = body.clientWidth;
  body.querySelectorAll("div.math, .table, pre").forEach((e) => {
    const inside = e.querySelector("mjx-container[display], table") ?? e;
    const width = Math.max(inside.scrollWidth, inside.offsetWidth);
    const own = Math.min(room, e.clientWidth);
    if (width > own) e.style.fontSize = `${own / width}em`;
  });
  for (let size = 1; size > 0.3 && !holds(body); size -= 0.02) {
    body.style.fontSize = `${size}em`;
  }
}

// Whether all that is in a box is within it, but for a pixel or two.
function holds(box) {
  const outer = box.getBoundingClientRect();
  return [...box.querySelectorAll("*:not(mjx-assistive-mml, mjx-assistive-mml *)")]
    .map((e) => e.getBoundingClientRect())
    .filter((r) => r.width && r.height)
    .every(
      (r) =>
        r.top > outer.top - 2 &&
        r.bottom < outer.bottom + 2 &&
        r.left > outer.left - 2 &&
        r.right < outer.right + 2,
    );
}

addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  const root = document.documentElement;
  root.classList.add("measured");
  document.querySelectorAll(".slides > section").forEach(fit);
  root.classList.remove("measured");
  await Reveal.initialize({
    ...SIZE,
    margin: 0,
    center: false,
    hash: true,
    transition: "none",
    slideNumber: "c/t",
    controlsTutorial: false,
    pdfMaxPagesPerSlide: 1,
    plugins: [RevealNotes],
  });
});
