// The gallery: one page of cards is in the document, the rest are numbers in `shown`.
const PAGE_SIZE = 60;
const at = (id) => document.getElementById(id);
const list = at("gallery");
let shown = [], page = 0, current = 0; // `current` counts from the first of all images shown

function numPages() {
  return Math.max(1, Math.ceil(shown.length / PAGE_SIZE));
}

function filters() {
  const words = ["decision", "outcome", "label", "kind", "text"].map((name) => [name, at(name).value]);
  return { ...Object.fromEntries(words), area: Number(at("area").value), pictured: at("pictured").checked };
}

function search() {
  shown = found(filters(), at("order").value, at("direction").value === "down");
  at("count").textContent = shown.length === rows.length
    ? `${rows.length.toLocaleString("en")} images`
    : `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} images`;
  at("none").hidden = shown.length > 0;
  showPage(0);
}

function showPage(number) {
  page = Math.min(Math.max(number, 0), numPages() - 1);
  const images = shown.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  list.replaceChildren(...images.map(card));
  list.start = page * PAGE_SIZE + 1;
  at("no-pictures").hidden = images.every((i) => rows.pictures[i]) || !rows.pictures.includes(1);
  at("page").textContent = `page ${page + 1} of ${numPages().toLocaleString("en")}`;
  at("page-back").disabled = page === 0;
  at("page-on").disabled = page === numPages() - 1;
  mark(page * PAGE_SIZE);
}

function turn(step) {
  const chosen = list.contains(document.activeElement);
  showPage(page + step);
  list.scrollIntoView({ block: "start" });
  if (chosen) button()?.focus({ preventScroll: true });
}

// The current card is the one that Tab reaches.
function mark(number) {
  current = Math.min(Math.max(number, 0), Math.max(shown.length - 1, 0));
  for (const [k, item] of [...list.children].entries()) {
    item.querySelector(".open").tabIndex = k === current % PAGE_SIZE ? 0 : -1;
  }
}

function button() {
  return list.children[current % PAGE_SIZE]?.querySelector(".open");
}

// Makes the image at this place among those shown the current one, on whichever page it is.
function go(number) {
  if (number < 0 || number >= shown.length) return;
  if (Math.floor(number / PAGE_SIZE) !== page) showPage(Math.floor(number / PAGE_SIZE));
  mark(number);
}

function startGallery() {
  if (!list) return;
  for (const name of ["decision", "outcome", "label", "kind"]) {
    const values = tally(name);
    for (const [value, number] of values) {
      at(name).append(new Option(`${value} (${number.toLocaleString("en")})`, value));
    }
    at(name).closest("label").hidden = values.length + (name === "outcome") < 2;
  }
  const query = at("query");
  query.addEventListener("input", (event) => {
    // The most suspicious come first: those with high scores and with low p-values.
    if (event.target.id === "order") at("direction").value = ["key", "p_value"].includes(event.target.value) ? "up" : "down";
    search();
  });
  query.addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("reset", () => setTimeout(search));
  at("page-back").addEventListener("click", () => turn(-1));
  at("page-on").addEventListener("click", () => turn(1));
  at("opacity").addEventListener("input", dress);
  at("boxes").addEventListener("input", dress);
  list.addEventListener("focusin", (event) => {
    const k = [...list.children].indexOf(event.target.closest(".card"));
    if (k >= 0) mark(page * PAGE_SIZE + k);
  });
  for (const cell of document.querySelectorAll("#confusion button")) cell.addEventListener("click", () => showCell(cell.dataset));
  dress();
  search();
}

function showCell({ label, decision }) {
  at("query").reset();
  at("label").value = label;
  at("decision").value = decision;
  search();
  at("gallery-title").scrollIntoView();
}

function dress() {
  document.body.style.setProperty("--map", at("opacity").value / 100);
  document.body.classList.toggle("bare", !at("boxes").checked);
}
