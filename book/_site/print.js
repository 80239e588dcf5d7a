// For print.css: how wide each formula and table is at least, in its own letters, so that
// it can shrink to the page.  How wide the page is, only the style sheet knows.
addEventListener("beforeprint", () => {
  const note = (e, width) => {
    const letters = width / parseFloat(getComputedStyle(e).fontSize);
    e.parentElement.style.setProperty("--letters", letters);
  };
  document.querySelectorAll("div.math > mjx-container").forEach((e) => {
    const least = parseFloat(getComputedStyle(e).minWidth) || 0; // with a number beside it
    const formula = e.querySelector("mjx-math");
    note(e, Math.max(formula.scrollWidth, least));
  });
  document.querySelectorAll(".pst-scrollable-table-container > table").forEach((e) => {
    e.style.width = "min-content";
    note(e, e.offsetWidth);
    e.style.width = "";
  });
});
