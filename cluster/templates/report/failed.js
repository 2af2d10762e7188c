// All failed inputs, a page of rows at a time.
const FAILED_PAGE = 100;
let failedPage = 0;

function showFailed(number) {
  const total = failed.key.length, pages = Math.max(1, Math.ceil(total / FAILED_PAGE));
  failedPage = Math.min(Math.max(number, 0), pages - 1);
  const body = at("failed-rows");
  body.replaceChildren();
  for (let i = failedPage * FAILED_PAGE; i < Math.min(total, (failedPage + 1) * FAILED_PAGE); i++) {
    body.append(element("tr", {}, ...["key", "source", "reason"].map((name) => element("td", {}, failed[name][i]))));
  }
  at("failed-page").textContent = `page ${failedPage + 1} of ${pages.toLocaleString("en")}`;
  at("failed-page-back").disabled = failedPage === 0;
  at("failed-page-on").disabled = failedPage === pages - 1;
}

function startFailed() {
  if (!at("failed-rows")) return;
  at("failed-page-back").addEventListener("click", () => showFailed(failedPage - 1));
  at("failed-page-on").addEventListener("click", () => showFailed(failedPage + 1));
  showFailed(0);
}
