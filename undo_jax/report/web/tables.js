/* Makes the headers of tables buttons that sort: ascending, descending, as written. */
(() => {
  "use strict";
  const NUMBER = /[-+]?\d+(\.\d+)?(e[-+]?\d+)?/;
  const EMPTY = /^(–|undefined|diverged|)$/;

  /* The first number of a cell, a share as its quotient; NaN where there is none. */
  function number(text) {
    const plain = text.replaceAll("−", "-").replaceAll(",", "");
    const share = plain.match(/^(\d+)\/(\d+)$/);
    if (share) return Number(share[1]) / Number(share[2]);
    const first = plain.match(NUMBER);
    return first ? Number(first[0]) + (plain.startsWith(">") ? 0.5 : 0) : NaN;
  }

  function isNumeric(texts) {
    const values = texts.filter((text) => !EMPTY.test(text));
    return values.length > 0 && values.every((text) => /^[>≤+−-]?\s*\d[\d.,e+-]*/.test(text));
  }

  function sortable(table) {
    const body = table.tBodies[0], written = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    const text = (row, column) => row.cells[column].textContent.trim();

    function sort(column, direction) {
      const numeric = isNumeric(written.map((row) => text(row, column)));
      const compare = (first, second) => {
        const a = text(first, column), b = text(second, column);
        const missing = EMPTY.test(a) - EMPTY.test(b);
        if (missing) return missing;  // empty cells come last, either way
        const order = numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true });
        return direction === "descending" ? -order : order;
      };
      body.append(...(direction === "none" ? written : [...written].sort(compare)));
      headers.forEach((header, i) => {
        header.setAttribute("aria-sort", i === column ? direction : "none");
      });
    }

    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      header.replaceChildren(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" };
        sort(column, next[header.getAttribute("aria-sort")]);
      });
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length > 1) sortable(table);
  }
})();
