// What one image looks like. Text of others becomes text nodes only, never markup.
const SVG = "http://www.w3.org/2000/svg";
const LARGEST_ENLARGED = 112; // px; wider images are not shown larger than they are in a card

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function short(value, digits) {
  return value === null ? "–" : String(Number(value.toPrecision(digits)));
}

function regionsOf(i) {
  const flat = rows.regions[i], list = [];
  for (let at = 0; at < flat.length; at += 6) {
    const [x, y, width, height, area, peak] = flat.slice(at, at + 6);
    list.push({ x, y, width, height, area, peak });
  }
  return list;
}

// Boxes in pixels of the image; they lie around the region, so that they hide none of it.
function boxes(i, numbered) {
  const svg = document.createElementNS(SVG, "svg");
  const size = Math.max(rows.width[i], rows.height[i]);
  svg.setAttribute("viewBox", `0 0 ${rows.width[i]} ${rows.height[i]}`);
  svg.setAttribute("class", "boxes");
  svg.setAttribute("aria-hidden", "true");
  regionsOf(i).forEach((region, number) => {
    const gap = size / 100;
    const box = { x: region.x - gap, y: region.y - gap, width: region.width + 2 * gap, height: region.height + 2 * gap };
    for (const kind of ["halo", "line"]) {
      const rect = document.createElementNS(SVG, "rect");
      for (const [key, value] of Object.entries(box)) rect.setAttribute(key, value);
      rect.setAttribute("class", kind);
      svg.append(rect);
    }
    if (numbered) {
      const label = document.createElementNS(SVG, "text");
      label.setAttribute("x", Math.min(box.x + box.width + gap, rows.width[i] - 4 * gap));
      label.setAttribute("y", Math.max(box.y + 2 * gap, 5 * gap));
      label.setAttribute("font-size", 5 * gap);
      label.textContent = number + 1;
      svg.append(label);
    }
  });
  return svg;
}

function picture(i, what, title) {
  const image = element("img", { loading: "lazy", decoding: "async", alt: `${title} of ${rows.key[i]}`, src: picturePath(i, what) });
  image.addEventListener("error", () => image.closest(".pane").classList.add("gone"));
  return image;
}

function pane(i, title, layers) {
  const frame = element("div", { class: "pane" }, ...layers);
  frame.style.aspectRatio = rows.width[i] / rows.height[i];
  frame.style.setProperty("--ratio", rows.width[i] / rows.height[i]);
  if (rows.width[i] <= LARGEST_ENLARGED) frame.classList.add("tiny");
  return element("figure", { class: "view" }, frame, element("figcaption", {}, title));
}

// Image, reconstruction, and the map over the image.
function panes(i, large = false) {
  const heat = picture(i, "overlay", "map");
  heat.classList.add("heat");
  const list = rows.regions[i].length > 0;
  return element("div", { class: "panes" },
    pane(i, "image", [picture(i, "image", "image"), ...(large && list ? [boxes(i, true)] : [])]),
    pane(i, "reconstruction", [picture(i, "reconstruction", "reconstruction")]),
    pane(i, large ? "map over the image" : "map", [picture(i, "image", "image"), heat, ...(list ? [boxes(i, large)] : [])]));
}

function chips(i) {
  const list = [];
  if (rows.decision[i]) list.push(element("span", { class: `chip ${rows.decision[i]}` }, rows.decision[i]));
  if (rows.outcome[i]) list.push(element("span", { class: "chip mistake" }, rows.outcome[i]));
  return list;
}

function fact(title, ...value) {
  return element("span", {}, `${title} `, element("b", {}, ...value));
}

function card(i) {
  const kind = rows.kind[i] && rows.kind[i] !== rows.label[i] ? `, ${rows.kind[i]}` : "";
  const facts = element("p", { class: "row" }, fact("score", short(rows.score[i], 4)));
  if (rows.p_value[i] !== null) facts.append(" ", fact("p", short(rows.p_value[i], 2)));
  facts.append(" ", fact("peak", short(rows.peak[i], 3)), " ", fact("label", rows.label[i] + kind));
  const minor = element("p", { class: "row minor" });
  const number = rows.num_regions[i];
  if (number) {
    minor.append(element("span", {}, `${number} region${number > 1 ? "s" : ""}, largest ${rows.largest_area[i]} px`), " ");
  }
  if (rows.source[i]) minor.append(element("span", { class: "source" }, rows.source[i]));
  const open = element("button", { type: "button", class: "open", "aria-haspopup": "dialog" }, rows.key[i]);
  const title = element("h3", {}, open, ...chips(i));
  const item = element("li", { class: "card", "data-image": i }, title);
  if (rows.pictures[i]) item.append(panes(i));
  item.append(facts, minor);
  return item;
}
