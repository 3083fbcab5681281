// CSV files written by the page, with the columns of `steel inspect`.

/** Formats a cell; text that a spreadsheet would run as a formula gets an apostrophe in front. */
function formatCell(value) {
  const text = typeof value === "string" && /^[=+\-@]/.test(value) ? `'${value}` : String(value ?? "");
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function buildTable(rows) {
  return new Blob([rows.map((row) => `${row.map(formatCell).join(",")}\n`).join("")], { type: "text/csv" });
}

const sumAreas = (answer, name) =>
  answer.spots.filter((spot) => spot.class === name).reduce((sum, spot) => sum + spot.area_pixels, 0);

/** Builds results.csv: one row per image, with its verdict if there is one. */
export function buildResults(images, model, verdicts) {
  const names = model.classes.map((entry) => entry.name);
  const novelty = model.novelty ? ["novelty", "unknown", "unknown_code"] : [];
  const header = [
    "image", "defective", "gate_probability", ...novelty, ...names.map((name) => `probability_${name}`),
    ...names.map((name) => `area_pixels_${name}`), "spots", "height", "width", "error", "verdict", "verdict_class",
    "inspector", "verdict_at", "comment",
  ];
  const rows = images.map(({ file, answer, error }) => {
    if (!answer) return [file.name, ...Array(5 + novelty.length + 2 * names.length).fill(""), error, "", "", "", "", ""];
    const verdict = verdicts.get(answer.digest) ?? {};
    const { novelty: distance, unknown_code: code } = answer;
    return [
      file.name, Number(answer.defective), answer.gate_probability.toFixed(6),
      ...(model.novelty ? [distance.toFixed(6), Number(Boolean(code)), code] : []),
      ...names.map((name) => answer.class_probabilities[name].toFixed(6)),
      ...names.map((name) => sumAreas(answer, name)), answer.spots.length, ...answer.size, "",
      verdict.verdict, verdict.class, verdict.inspector, verdict.at, verdict.comment,
    ];
  });
  return buildTable([header, ...rows]);
}

/** Builds submission.csv in Kaggle's format: one row per image and class. */
export function buildSubmission(images, classes) {
  const rows = images.filter((image) => image.answer).flatMap(({ file, answer }) =>
    classes.map((entry, c) => [file.name, c + 1, answer.codes[entry.name]]));
  return buildTable([["ImageId", "ClassId", "EncodedPixels"], ...rows]);
}
