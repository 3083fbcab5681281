// Reads files: takes chosen and dropped ones, lists dropped folders, and decodes images.

import { $ } from "./dom.js";

/** Calls back with a promise of a list of files when the user chooses or drops files or a folder. */
export function listenForFiles(onFiles) {
  for (const kind of ["images", "folder"]) {
    $(`#add-${kind}`).onclick = () => $(`#${kind}`).click();
    $(`#${kind}`).onchange = ({ target }) => {
      onFiles(Promise.resolve([...target.files])); // a copy: the list is emptied together with the input
      target.value = "";
    };
  }
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const entries = [...event.dataTransfer.items].filter((item) => item.kind === "file")
      .map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
    onFiles(Promise.all(entries.map(listFiles)).then((lists) => lists.flat()));
  });
}

/** Lists all files of a dropped file or folder. */
async function listFiles(entry) {
  if (entry instanceof File) return [entry];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // A reader returns at most 100 entries per call.
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return files;
    for (const inner of entries) files.push(...(await listFiles(inner)));
  }
}

// Ignores the orientation stored by the camera, as the service does.
export const decode = (file, options) => createImageBitmap(file, { imageOrientation: "none", ...options });

/** Draws a small version of an image file; leaves the canvas empty if the browser cannot decode it. */
export async function drawThumbnail(file, canvas) {
  const bitmap = await decode(file, { resizeWidth: 126, resizeQuality: "medium" }).catch(() => null);
  if (!bitmap) return; // a TIFF: the service can decode it, but most browsers cannot
  canvas.height = Math.min(bitmap.height, 126);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
}
