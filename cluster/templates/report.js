"use strict";
const buttons = [...document.querySelectorAll("[data-filter]")];
const cards = [...document.querySelectorAll("article")];

function show(wanted) {
  for (const card of cards) {
    card.hidden = wanted !== "all" && !card.dataset.tags.split(" | ").includes(wanted);
  }
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(button.dataset.filter === wanted));
  }
  const num = cards.filter((card) => !card.hidden).length;
  document.getElementById("shown").textContent = `${num} on this page`;
  document.getElementById("none").hidden = num > 0;
}

for (const button of buttons) {
  button.addEventListener("click", () => show(button.dataset.filter));
}
