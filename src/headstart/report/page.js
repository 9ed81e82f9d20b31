// Sorts tables and filters lists; without it the page has all of its content. Nothing is loaded, stored or sent.
"use strict";

const value = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = parseFloat(text.replace(/[,+]/g, "").replace("−", "-").replace(/^< /, ""));
  return /^[-+−<\d]/.test(text) && !Number.isNaN(number) ? number : text;
};

const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });

const missing = (it) => it === "" || it === "–";

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const keyed = [...body.rows].map((row) => [value(row, column), row]);
      keyed.sort(([a], [b]) => missing(a) - missing(b) || (down ? compare(b, a) : compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

for (const input of document.querySelectorAll("input[data-filter]")) {
  const items = [...document.querySelectorAll(`#${input.dataset.filter} [data-text]`)];
  const shown = input.closest("p").querySelector("output");
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const item of items) item.hidden = !item.dataset.text.toLowerCase().includes(wanted);
    shown.value = wanted ? `${items.filter((item) => !item.hidden).length} of ${items.length}` : "";
  });
  input.closest("p").hidden = false;
}

// An image is embedded once; its other places on the page take it from there.
for (const image of document.querySelectorAll("img[data-same]")) {
  image.src = document.getElementById(image.dataset.same).src;
}

const details = [...document.querySelectorAll("details")];
addEventListener("beforeprint", () => details.forEach((it) => it.setAttribute("open", "")));
