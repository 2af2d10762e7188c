// The rows as columns: `rows.score[i]` is the score of image i. Data files fill them.
const NUMBER_COLUMNS = ["score", "residual", "feature", "peak", "p_value"];
const CODED_COLUMNS = ["unit", "label", "kind", "decision", "outcome", "height", "width", "tiles", "best_step"];
const PLAIN_COLUMNS = ["key", "source", "group", "pictures", "num_regions", "largest_area", "regions"];
const rows = { length: 0 };
const failed = { key: [], source: [], reason: [] };
for (const name of [...NUMBER_COLUMNS, ...CODED_COLUMNS, ...PLAIN_COLUMNS]) rows[name] = [];

function append(column, values) {
  for (const value of values) column.push(value);
}

function decoded(column) {
  return column.codes.map((code) => column.values[code]);
}

const inspection = {
  addRows(columns) {
    for (const name of [...NUMBER_COLUMNS, ...PLAIN_COLUMNS]) append(rows[name], columns[name]);
    for (const name of CODED_COLUMNS) append(rows[name], decoded(columns[name]));
    rows.length = rows.key.length;
  },
  addFailed(columns) {
    append(failed.key, columns.key);
    append(failed.source, columns.source);
    append(failed.reason, decoded(columns.reason));
  },
  start() {
    startGallery();
    startFailed();
  },
};

function picturePath(i, what) {
  const name = `${encodeURIComponent(rows.key[i])}.${what}.png`;
  return `maps/${encodeURIComponent(rows.unit[i])}/${name}`;
}
