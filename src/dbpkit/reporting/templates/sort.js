for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
    const blank = (row) => key(row) === "";
    const numeric = original.every((row) => !Number.isNaN(Number(key(row))));
    const cycle = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
    button.addEventListener("click", () => {
      const next = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const compared = (a, b) => numeric ? key(a) - key(b) : key(a).localeCompare(key(b));
      const order = (a, b) => blank(a) || blank(b) ? blank(a) - blank(b) : sign * compared(a, b);
      body.append(...(next ? [...original].sort(order) : original));
    });
  });
}
for (const details of document.querySelectorAll("details:not([open])")) {
  addEventListener("beforeprint", () => { details.open = true; });
}
