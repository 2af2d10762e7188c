// The large view of one image, and what closes dialogs.
const viewer = at("viewer");

function regionTable(i) {
  const regions = regionsOf(i), head = ["", "x", "y", "width", "height", "area", "peak"];
  const table = element("table", { class: "regions" },
    element("caption", {}, regions.length < rows.num_regions[i]
      ? `The ${MAX_BOXES} strongest of ${rows.num_regions[i]} regions, in pixels` : "Regions, in pixels"),
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col", class: "number" }, name)))));
  const body = element("tbody");
  regions.forEach((region, number) => {
    const { x, y, width, height, area, peak } = region;
    const cells = [x, y, width, height, area, `${Math.round(peak * 100)} %`];
    body.append(element("tr", {}, element("th", { scope: "row", class: "number" }, number + 1),
      ...cells.map((value) => element("td", { class: "number" }, value))));
  });
  table.append(body);
  return table;
}

function factTable(i) {
  const facts = {
    score: short(rows.score[i], 6), "p-value": short(rows.p_value[i], 3), "peak of the map": short(rows.peak[i], 4),
    residual: short(rows.residual[i], 4), feature: short(rows.feature[i], 4), label: rows.label[i], kind: rows.kind[i],
    part: rows.group[i], source: rows.source[i], size: `${rows.width[i]} × ${rows.height[i]} px`,
    tiles: rows.tiles[i] > 1 ? rows.tiles[i] : null, "best step": rows.best_step[i], unit: rows.unit[i],
  };
  const known = Object.entries(facts).filter(([, value]) => value !== null && value !== "" && value !== "–");
  return element("dl", { class: "facts" },
    ...known.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function files(i) {
  const names = { image: "image", reconstruction: "reconstruction", overlay: "overlay", map: "map, 16 bit" };
  const links = Object.entries(names).map(([what, title]) => element("a", { href: picturePath(i, what), target: "_blank" }, title));
  return element("p", { class: "row minor" }, "Files:", ...links);
}

function fillViewer() {
  const i = shown[current];
  at("viewer-title").replaceChildren(rows.key[i], ...chips(i),
    element("small", {}, `${(current + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`));
  const parts = rows.pictures[i] ? [panes(i, true), files(i)] : [element("p", { class: "empty" }, "no pictures of this image")];
  const tables = rows.num_regions[i] ? [regionTable(i), factTable(i)] : [factTable(i)];
  at("viewer-body").replaceChildren(...parts, element("div", { class: "details" }, ...tables));
  viewer.scrollTop = 0;
}

function openViewer() {
  if (!shown.length) return;
  fillViewer();
  viewer.showModal();
  at("viewer-title").focus();
}

function step(by) {
  const before = current;
  go(current + by);
  if (current !== before) fillViewer();
}

for (const node of viewer.querySelectorAll("[data-step]")) node.addEventListener("click", () => step(Number(node.dataset.step)));
for (const node of document.querySelectorAll("[data-close]")) node.addEventListener("click", () => node.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
viewer.addEventListener("close", () => button()?.focus());
list?.addEventListener("click", (event) => {
  const item = event.target.closest(".open, .panes")?.closest(".card");
  if (!item) return;
  mark(page * PAGE_SIZE + [...list.children].indexOf(item));
  openViewer();
});
