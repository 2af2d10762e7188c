// The keyboard. Arrows keep scrolling the page until a card is chosen; j and k always go on.
function perRow() {
  const tops = [...list.children].map((item) => item.offsetTop);
  return Math.max(1, tops.filter((top) => top === tops[0]).length);
}

function move(by) {
  if (viewer.open) return step(by);
  const chosen = list.contains(document.activeElement);
  if (chosen) go(current + by);
  const target = button();
  target?.focus({ preventScroll: true });
  target?.closest(".card").scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  n: () => viewer.open || turn(1),
  p: () => viewer.open || turn(-1),
  b: () => at("boxes").click(),
  "/": () => viewer.open || at("text").focus(),
  "?": () => viewer.open || at("help").showModal(),
};
const ARROWS = {
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  ArrowDown: () => move(viewer.open ? 1 : perRow()),
  ArrowUp: () => move(viewer.open ? -1 : -perRow()),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  const target = event.target;
  if (event.key === "Escape" && target === at("text")) button()?.focus();
  if (target.matches("input:not([type=checkbox]), select, textarea")) return;
  const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
  // In the large view up and down scroll.
  const arrows = viewer.open ? sideways : list.contains(target);
  const act = KEYS[event.key] ?? (arrows && ARROWS[event.key]);
  if (!act) return;
  event.preventDefault();
  act();
}

if (list) {
  document.addEventListener("keydown", onKey);
  at("help-button").addEventListener("click", () => at("help").showModal());
}
