// The words of the page: decisions, pictures, verdicts, and questions about them.

import { ask } from "./dom.js";

export const LABELS = {
  agree: "agreed", missed: "missed", false_alarm: "false alarm", unknown: "unknown defect",
  defective: "defective", unclear: "passed the gate, nothing outlined", clean: "clean", unlike: "unlike clean steel",
  unreadable: "unreadable", failed: "not inspected", waiting: "waiting for the result", all: "all",
  unjudged: "no verdict",
};

/** Describes the decision on an image that has an answer. */
export const describeDecision = (decision, { novelty, gate_probability: probability }) => (decision === "unlike"
  ? `not like any clean steel seen, and none of the classes, novelty ${novelty.toFixed(2)}`
  : `${LABELS[decision]}, probability ${probability.toFixed(2)}`);

/** Describes a picture for people who do not see it: the decision, and the spots of each class. */
export function describePicture(name, size, decision, spots) {
  const found = Map.groupBy(spots, (spot) => spot.class);
  const list = [...found].map(([label, ofClass]) => {
    const area = ofClass.reduce((sum, { area_pixels: pixels }) => sum + pixels, 0).toLocaleString("en");
    const largest = ofClass.reduce((a, b) => (b.area_pixels > a.area_pixels ? b : a));
    const [x, y] = largest.centroid.map(Math.round);
    const [number, which] = ofClass.length === 1 ? ["1 spot", ""] : [`${ofClass.length} spots`, "the largest "];
    return `${number} of class ${label}, ${area} pixels, ${which}at x ${x}, y ${y}`;
  });
  const shape = size ? `, ${size[1]} by ${size[0]} pixels` : "";
  return `${name}${shape}: ${decision}${list.length ? `; ${list.join("; ")}` : ""}`;
}

/** Describes a verdict in one line. */
export function describeVerdict({ verdict, class: label, marks = {}, inspector, at, comment, isWaiting }) {
  const names = label ? [label] : Object.keys(marks).filter((name) => marks[name]);
  const time = at && new Date(at).toLocaleString("en-GB", { dateStyle: "short", timeStyle: "short" });
  const notes = [inspector, time, isWaiting && "not yet sent"].filter(Boolean).join(", ");
  return `${LABELS[verdict] ?? "verdict deleted"}${verdict && names.length ? `, class ${names.join(" and ")}` : ""}` +
    `${notes ? ` (${notes})` : ""}${comment ? `: ${comment}` : ""}`;
}

/** Asks whether to replace someone else's verdict on an image. */
export const askToReplace = (image, verdict, mine) =>
  ask(`${image} has a verdict: ${describeVerdict(verdict)}. Replace it with yours: ${mine}?`, "Replace", "Keep");

/** Asks whether to send a verdict of the outbox although someone has changed the verdict on its image. */
export function askAboutConflict({ image, body }, verdict) {
  const mine = body ? describeVerdict(body) : "delete the verdict";
  return verdict ? askToReplace(image, verdict, mine)
    : ask(`Someone has deleted the verdict on ${image} meanwhile. Save yours: ${mine}?`, "Save", "Discard");
}
