// Brightness and contrast of the displayed image. The service always inspects the original.

import { $ } from "./dom.js";

const NEUTRAL = { brightness: 0, contrast: 1 };
const SHARE = 0.01; // of the pixels at either end that `findLevels` lets become black or white

function readPixels(image) {
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  return [context, context.getImageData(0, 0, image.width, image.height)];
}

/** Returns the image with other levels: `(value + brightness - 128) * contrast + 128` for values 0 to 255. */
export function applyLevels(image, { brightness, contrast } = NEUTRAL) {
  if (!image || (brightness === NEUTRAL.brightness && contrast === NEUTRAL.contrast)) return image;
  const [context, picture] = readPixels(image);
  // A clamped array rounds and limits the values.
  const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => (value + brightness - 128) * contrast + 128);
  const { data } = picture;
  for (let i = 0; i < data.length; i++) if (i % 4 !== 3) data[i] = table[data[i]];
  context.putImageData(picture, 0, 0);
  return context.canvas;
}

/** Returns the levels that spread the grey values of an image over the whole range. */
export function findLevels(image) {
  if (!image) return NEUTRAL;
  const { data } = readPixels(image)[1];
  const counts = new Uint32Array(256);
  for (let i = 0; i < data.length; i += 4) counts[data[i]]++;
  const limit = (SHARE * data.length) / 4;
  const findEnd = (values) => {
    let sum = 0;
    return values.find((value) => (sum += counts[value]) > limit);
  };
  const values = [...counts.keys()];
  const [low, high] = [findEnd(values), findEnd(values.reverse())];
  return { brightness: Math.round(128 - (low + high) / 2), contrast: Math.min(8, 255 / Math.max(1, high - low)) };
}

/** Connects the sliders and buttons of the display with a viewer. */
export function listenForDisplay(viewer) {
  const set = ({ brightness, contrast }) => {
    $("#brightness").value = brightness;
    $("#contrast").value = contrast;
    viewer.setLevels({ brightness: $("#brightness").valueAsNumber, contrast: $("#contrast").valueAsNumber });
  };
  for (const name of ["brightness", "contrast"]) {
    $(`#${name}`).oninput = () => set({ brightness: $("#brightness").value, contrast: $("#contrast").value });
  }
  $("#auto-levels").onclick = () => set(viewer.findLevels());
  $("#reset-levels").onclick = () => set(NEUTRAL);
  $("#opacity").oninput = ({ target }) => { viewer.opacity = target.valueAsNumber; viewer.draw(); };
}
