"use strict";
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const column = [...heading.parentElement.children].indexOf(heading);
    const numeric = heading.classList.contains("number");
    // Figures begin with the largest, names with A.
    const before = heading.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : !numeric;
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
    const compare = (a, b) => {
      if (!numeric) return key(a).localeCompare(key(b), undefined, { numeric: true });
      const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return x - y;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a))));
  });
}
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    const selection = getSelection();
    selection.selectAllChildren(code);
    let done = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      done = true;
    } catch {
      // A page opened without clipboard access: the text is selected, ready for the reader's own copy key.
    }
    button.textContent = done ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
for (const graph of document.querySelectorAll(".graph")) {
  const known = [...document.querySelectorAll(`[data-graph="${graph.id}"]`)];
  const open = (id) => {
    for (const article of known) article.hidden = article.id !== id;
    for (const node of graph.querySelectorAll(".node")) {
      if (node.hash === `#${id}`) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
    for (const path of graph.querySelectorAll("path")) {
      path.classList.toggle("lit", path.dataset.source === id || path.dataset.target === id);
    }
  };
  const follow = () => {
    const article = known.find((each) => `#${each.id}` === location.hash);
    if (!article) return;
    open(article.id);
    article.focus({ preventScroll: true });
    article.scrollIntoView({ block: "nearest" });
  };
  open(graph.dataset.first);
  const first = graph.querySelector(".node[aria-current]");
  graph.scrollLeft = first.offsetLeft - graph.clientWidth * 0.6;
  graph.scrollTop = first.offsetTop - graph.clientHeight / 2;
  follow();
  addEventListener("hashchange", follow);
  // The same link again changes no hash, and is to lead there all the same.
  graph.addEventListener("click", (event) => {
    if (event.target.closest(".node")?.hash === location.hash) follow();
  });
}
