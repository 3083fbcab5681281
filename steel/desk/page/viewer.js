// Shows an image with its masks. Zoom with the wheel, a pinch, keys or buttons; pan by dragging, unless a pen is set.

import { applyLevels, findLevels } from "./levels.js";

const MAX_SCALE = 32; // screen pixels per image pixel

/** Draws the pixels of a run-length code, which are numbered from 1 down the columns, in one colour. */
function drawCode(code, [height, width], colour) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const value = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const numbers = code ? code.split(" ").map(Number) : [];
  for (let i = 0; i < numbers.length; i += 2) {
    for (let p = numbers[i] - 1; p < numbers[i] - 1 + numbers[i + 1]; p++) {
      pixels[(p % height) * width + Math.floor(p / height)] = value;
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

export class Viewer {
  #canvas;
  #context;
  #image = null;
  #shown = null; // the image with the chosen levels
  #levels;
  #size = [1, 1];
  #masks = [];
  #spot = null;
  #view = { x: 0, y: 0, scale: 1 }; // image pixel in the top left corner, and screen pixels per image pixel
  #pointers = new Map();
  #isQueued = false;
  opacity = 0.45;
  visible = [];
  /** Draws with the pointer: begin, move, end and cancel take image pixels, and paint a context. */
  pen = null;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, event);
      if (this.#pointers.size === 1) this.pen?.begin(...this.#locate(event));
      else this.pen?.cancel(); // a second finger zooms
      this.draw();
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        this.#pointers.delete(event.pointerId);
        this.pen?.end();
        this.draw();
      });
    }
    canvas.addEventListener("dblclick", (event) => {
      if (!this.pen) this.zoom(2, event.offsetX, event.offsetY);
    });
  }

  /** Shows another image: a bitmap, or null if the browser cannot decode it, and its height and width. */
  show(image, size) {
    this.#image = image;
    this.#shown = applyLevels(image, this.#levels);
    this.#size = size;
    this.#masks = [];
    this.#spot = null;
    this.#resize();
    this.fit();
  }

  /** Sets the masks: the run-length code and the colour of each class, once or several times over. */
  setMasks(codes, colours) {
    this.#masks = codes.map((code, c) => (code ? drawCode(code, this.#size, colours[c]) : null));
    this.draw();
  }

  /** Sets brightness and contrast of this image and of the next ones. */
  setLevels(levels) {
    this.#levels = levels;
    this.#shown = applyLevels(this.#image, levels);
    this.draw();
  }

  /** Returns the levels that suit the current image. */
  findLevels() {
    return findLevels(this.#image);
  }

  fit() {
    const [height, width] = this.#size;
    this.#spot = null;
    const scale = Math.min(this.#canvas.clientWidth / width, this.#canvas.clientHeight / height);
    this.#view = { x: 0, y: 0, scale };
    this.draw();
  }

  /** Zooms around a point of the canvas, by default its centre. */
  zoom(factor, x = this.#canvas.clientWidth / 2, y = this.#canvas.clientHeight / 2) {
    const old = this.#view.scale;
    const scale = Math.min(MAX_SCALE, Math.max(this.#fitScale, old * factor));
    this.#view.x += x / old - x / scale;
    this.#view.y += y / old - y / scale;
    this.#view.scale = scale;
    this.draw();
  }

  /** Pans by screen pixels. */
  pan(x, y) {
    this.#view.x += x / this.#view.scale;
    this.#view.y += y / this.#view.scale;
    this.draw();
  }

  /** Zooms to a box of left, top, width and height, and outlines it. */
  zoomTo([left, top, width, height]) {
    const { clientWidth, clientHeight } = this.#canvas;
    const margin = 2.5; // size of the view as a multiple of the box
    const scale = Math.max(
      this.#fitScale,
      Math.min(8, clientWidth / (margin * width), clientHeight / (margin * height)),
    );
    this.#view = {
      x: left + width / 2 - clientWidth / scale / 2,
      y: top + height / 2 - clientHeight / scale / 2,
      scale,
    };
    this.#spot = [left, top, width, height];
    this.draw();
  }

  /** Draws in the next animation frame. */
  draw() {
    if (this.#isQueued) return;
    this.#isQueued = true;
    requestAnimationFrame(() => {
      this.#isQueued = false;
      this.#draw();
    });
  }

  get #fitScale() {
    return Math.min(this.#canvas.clientWidth / this.#size[1], this.#canvas.clientHeight / this.#size[0]);
  }

  #resize() {
    const [height, width] = this.#size;
    const desiredHeight = (this.#canvas.clientWidth * height) / width;
    this.#canvas.style.height = `${Math.round(Math.min(Math.max(desiredHeight, 160), 0.5 * innerHeight))}px`;
    const minScale = this.#fitScale;
    this.#canvas.width = Math.round(this.#canvas.clientWidth * devicePixelRatio);
    this.#canvas.height = Math.round(this.#canvas.clientHeight * devicePixelRatio);
    if (this.#view.scale < minScale) this.#view.scale = minScale;
    this.draw();
  }

  #locate({ offsetX, offsetY }) {
    return [this.#view.x + offsetX / this.#view.scale, this.#view.y + offsetY / this.#view.scale];
  }

  #move(event) {
    const last = this.#pointers.get(event.pointerId);
    if (!last) return;
    if (this.#pointers.size === 1 && this.pen) {
      this.pen.move(...this.#locate(event));
      this.draw();
    } else if (this.#pointers.size === 1) {
      this.pan(last.offsetX - event.offsetX, last.offsetY - event.offsetY);
    } else {
      const [other] = [...this.#pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
      const distance = (pointer) => Math.hypot(pointer.offsetX - other.offsetX, pointer.offsetY - other.offsetY);
      const middle = [(event.offsetX + other.offsetX) / 2, (event.offsetY + other.offsetY) / 2];
      this.zoom(distance(event) / Math.max(1, distance(last)), ...middle);
    }
    this.#pointers.set(event.pointerId, event);
  }

  /** Keeps the image in view; centres it if it is smaller than the canvas. */
  #clamp() {
    const { clientWidth, clientHeight } = this.#canvas;
    const { scale } = this.#view;
    const clamp = (start, length, room) =>
      length <= room ? (length - room) / 2 : Math.min(Math.max(start, 0), length - room);
    this.#view.x = clamp(this.#view.x, this.#size[1], clientWidth / scale);
    this.#view.y = clamp(this.#view.y, this.#size[0], clientHeight / scale);
  }

  #draw() {
    this.#clamp();
    const { x, y, scale } = this.#view;
    const context = this.#context;
    const zoom = scale * devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    context.setTransform(zoom, 0, 0, zoom, -x * zoom, -y * zoom);
    context.imageSmoothingEnabled = zoom < 2;
    context.globalAlpha = 1;
    if (this.#shown) context.drawImage(this.#shown, 0, 0);
    context.globalAlpha = this.opacity;
    this.#masks.forEach((mask, c) => {
      if (mask && this.visible[c % this.visible.length]) context.drawImage(mask, 0, 0);
    });
    context.globalAlpha = Math.max(this.opacity, 0.3);
    this.pen?.paint(context);
    if (this.#spot) {
      const [left, top, width, height] = this.#spot;
      context.globalAlpha = 1;
      context.strokeStyle = "white";
      context.lineWidth = 1.5 / scale;
      const gap = 4 / scale;
      context.strokeRect(left - gap, top - gap, width + 2 * gap, height + 2 * gap);
    }
  }
}
