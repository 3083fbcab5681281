// Outlines of missed defects, drawn by the inspector with a brush or as boxes.

/** Returns the run-length code of the opaque pixels of a picture, numbered from 1 down the columns. */
function encode({ data, width, height }) {
  const numbers = [];
  let end = 0; // the pixel after the last run
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (data[4 * (y * width + x) + 3] < 128) continue;
      const pixel = x * height + y + 1;
      if (pixel === end) numbers[numbers.length - 1]++;
      else numbers.push(pixel, 1);
      end = pixel + 1;
    }
  }
  return numbers.join(" ");
}

/** The pen of a `Viewer`. All coordinates are pixels of the image. */
export class Marking {
  #strokes = []; // { c, colour, box: [left, top, width, height] } or { c, colour, width, points: [[x, y], ...] }
  #current = null;
  #size;
  #onChange;
  tool = "brush";
  brushWidth = 8;
  classIndex = 0;
  colour = "#ffffff";

  /** Takes height and width of the image, and a callback for every finished or removed stroke. */
  constructor(size, onChange) {
    this.#size = size;
    this.#onChange = onChange;
  }

  get isEmpty() { return !this.#strokes.length; }

  /** Starts a stroke. */
  begin(x, y) {
    const { classIndex: c, colour, brushWidth: width } = this;
    this.#current = this.tool === "box" ? { c, colour, start: [x, y], box: this.#span(x, y, x, y) }
      : { c, colour, width, points: [[x, y]] };
  }

  move(x, y) {
    if (!this.#current) return;
    if (this.#current.box) this.#current.box = this.#span(...this.#current.start, x, y);
    else this.#current.points.push([x, y]);
  }

  end() {
    if (!this.#current) return;
    this.#strokes.push(this.#current);
    this.cancel();
    this.#onChange();
  }

  /** Drops the stroke in progress. */
  cancel() {
    this.#current = null;
  }

  addBox([left, top, width, height]) {
    const box = this.#span(left, top, left + width, top + height);
    this.#strokes.push({ c: this.classIndex, colour: this.colour, box });
    this.#onChange();
  }

  undo() {
    this.#strokes.pop();
    this.#onChange();
  }

  /** Returns the run-length code of each of `numClasses` classes; empty where nothing was drawn. */
  buildCodes(numClasses) {
    const [height, width] = this.#size;
    return Array.from({ length: numClasses }, (_, c) => {
      const strokes = this.#strokes.filter((stroke) => stroke.c === c);
      if (!strokes.length) return "";
      const context = new OffscreenCanvas(width, height).getContext("2d");
      strokes.forEach((stroke) => this.#paintStroke(context, stroke));
      return encode(context.getImageData(0, 0, width, height));
    });
  }

  /** Paints all strokes on a canvas whose unit is a pixel of the image. */
  paint(context) {
    for (const stroke of this.#strokes) this.#paintStroke(context, stroke);
    if (this.#current) this.#paintStroke(context, this.#current);
  }

  #paintStroke(context, { colour, box, width, points }) {
    context.fillStyle = context.strokeStyle = colour;
    if (box) {
      context.fillRect(...box);
      return;
    }
    Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...points[0]);
    // A line without length is not drawn by every browser.
    for (const [x, y] of points) context.lineTo(x + 0.01, y);
    context.stroke();
  }

  /** Returns left, top, width and height of whole pixels between two points, within the image. */
  #span(x1, y1, x2, y2) {
    const [height, width] = this.#size;
    const limit = (value, end) => Math.min(Math.max(value, 0), end);
    const left = limit(Math.floor(Math.min(x1, x2)), width - 1);
    const top = limit(Math.floor(Math.min(y1, y2)), height - 1);
    const right = limit(Math.ceil(Math.max(x1, x2)), width);
    const bottom = limit(Math.ceil(Math.max(y1, y2)), height);
    return [left, top, Math.max(1, right - left), Math.max(1, bottom - top)];
  }
}
