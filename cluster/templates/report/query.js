// Which images are shown, in which order. 200,000 of them are sorted once for each order and walked
// through for each filter.
const sorted = new Map();
let haystack = null;

// Unknown values come last, equal ones in the order of the files.
function sortedBy(name, descending) {
  const id = `${name} ${descending}`;
  if (!sorted.has(id)) {
    const column = rows[name], sign = descending ? -1 : 1;
    const known = [], unknown = [];
    for (let i = 0; i < rows.length; i++) (column[i] === null ? unknown : known).push(i);
    known.sort((a, b) => (column[a] < column[b] ? -sign : column[a] > column[b] ? sign : a - b));
    sorted.set(id, known.concat(unknown));
  }
  return sorted.get(id);
}

function texts() {
  haystack ??= rows.key.map((key, i) => `${key}\n${rows.source[i]}`.toLowerCase());
  return haystack;
}

// Numbers of the images that pass all filters: { decision, outcome, label, kind, text, area, pictured }.
function found(filters, order, descending) {
  const words = ["decision", "outcome", "label", "kind"].filter((name) => filters[name]);
  const text = filters.text.trim().toLowerCase();
  return sortedBy(order, descending).filter((i) =>
    words.every((name) => rows[name][i] === filters[name]) &&
    (!filters.area || rows.largest_area[i] >= filters.area) &&
    (!filters.pictured || rows.pictures[i]) &&
    (!text || texts()[i].includes(text)));
}

// Values of a column with their number of images, in alphabetical order.
function tally(name) {
  const counts = new Map();
  for (const value of rows[name]) if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort((a, b) => (a[0] < b[0] ? -1 : 1));
}
