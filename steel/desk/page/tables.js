// The tables that the page hands out, in the columns that `steel inspect` writes.

/** A spreadsheet takes a text that begins like a formula for one. */
function cell(value) {
  const text = typeof value === "string" && /^[=+\-@]/.test(value) ? `'${value}` : String(value ?? "");
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table(rows) {
  return new Blob([rows.map((row) => `${row.map(cell).join(",")}\n`).join("")], { type: "text/csv" });
}

const sumAreas = (answer, name) =>
  answer.spots.filter((spot) => spot.class === name).reduce((sum, spot) => sum + spot.area_pixels, 0);

/** results.csv: a row for each image, with the verdict where there is one. */
export function writeResults(images, classes, verdicts) {
  const names = classes.map((entry) => entry.name);
  const header = [
    "image", "defective", "gate_probability", ...names.map((name) => `probability_${name}`),
    ...names.map((name) => `area_pixels_${name}`), "spots", "height", "width", "error", "verdict", "verdict_class", "inspector", "verdict_at",
  ];
  const rows = images.map(({ file, answer, error }) => {
    if (!answer) return [file.name, ...Array(5 + 2 * names.length).fill(""), error, "", "", "", ""];
    const verdict = verdicts.get(answer.digest) ?? {};
    return [
      file.name, Number(answer.defective), answer.gate_probability.toFixed(6),
      ...names.map((name) => answer.class_probabilities[name].toFixed(6)),
      ...names.map((name) => sumAreas(answer, name)), answer.spots.length, ...answer.size, "",
      verdict.verdict, verdict.class, verdict.inspector, verdict.at,
    ];
  });
  return table([header, ...rows]);
}

/** submission.csv: Kaggle's form, a row for each image and class. */
export function writeCodes(images, classes) {
  const rows = images.filter((image) => image.answer).flatMap(({ file, answer }) =>
    classes.map((entry, c) => [file.name, c + 1, answer.codes[entry.name]]));
  return table([["ImageId", "ClassId", "EncodedPixels"], ...rows]);
}
