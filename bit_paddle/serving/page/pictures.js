// Pictures from everywhere: dropped, pasted, chosen, or taken with the camera.

import { plain, say, tell } from "./words.js";

const ENDINGS = /\.(avif|bmp|gif|heic|heif|jfif|jpe?g|png|ppm|tiff?|webp)$/i;

const AT_ONCE = 4; // requests at a time

// A picture and its place: `path` is that below a chosen folder.
export class Picture {
  constructor(file, path = file.webkitRelativePath || file.name) {
    this.file = file;
    this.path = path;
    this.name = file.name;
    this.address = URL.createObjectURL(file);
  }

  forget() {
    URL.revokeObjectURL(this.address);
  }

  // Return an <img>; a picture that the browser cannot show leaves its name.
  image() {
    const image = document.createElement("img");
    image.alt = this.name;
    image.decoding = "async";
    image.loading = "lazy";
    image.src = this.address;
    return image;
  }
}

function isPicture(file) {
  return file.type.startsWith("image/") || ENDINGS.test(file.name);
}

// Return {pictures, others}: the pictures among the files in the order of their paths, and how
// many files are none. Hidden files are not counted.
function sorted(found) {
  const seen = found.filter(({ file }) => !file.name.startsWith("."));
  const order = new Intl.Collator(undefined, { numeric: true });
  const pictures = seen
    .filter(({ file }) => isPicture(file))
    .sort((one, two) => order.compare(one.path, two.path))
    .map(({ file, path }) => new Picture(file, path));
  return { pictures, others: seen.length - pictures.length };
}

function ofFiles(files) {
  return sorted(
    [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name })),
  );
}

// --- Drop and paste -----------------------------------------------------------------------------

// Call `take({pictures, others})` with what is dropped on `element`.
export function takeDrops(element, take) {
  let depth = 0; // of the entered elements inside
  const enter = (change) => (event) => {
    event.preventDefault();
    event.stopPropagation();
    depth += change;
    element.classList.toggle("over", depth > 0);
  };
  element.addEventListener("dragenter", enter(1));
  element.addEventListener("dragleave", enter(-1));
  element.addEventListener("dragover", enter(0));
  element.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    depth = 0;
    element.classList.remove("over");
    take(sorted(await inside(event.dataTransfer)));
  });
}

// Call `take` with what is pasted anywhere.
export function takePastes(take) {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    if (!files.length) return;
    event.preventDefault();
    take(ofFiles(files), event.target);
  });
}

async function inside(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  return (await Promise.all(entries.map((entry) => below(entry)))).flat();
}

async function below(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some); // a call gives at most 100
  }
  return (await Promise.all(found.map(below))).flat();
}

// --- Choose and take ----------------------------------------------------------------------------

// Make `button` open the file dialog; call `take` with the choice.
export function choose(button, take, folder = false) {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.webkitdirectory = folder;
  if (!folder) input.accept = "image/*";
  input.onchange = () => {
    if (input.files.length) take(ofFiles(input.files));
    input.value = ""; // the same files can be chosen again
  };
  button.addEventListener("click", () => input.click());
}

// Make `button` open the camera, or hide it where pages have none; call `take` with each photo.
export function photograph(button, take) {
  button.hidden = !navigator.mediaDevices?.getUserMedia;
  button.addEventListener("click", () => openCamera(take));
}

async function openCamera(take) {
  const dialog = document.getElementById("camera");
  const parts = ["video", "[role=alert]", "[role=status]"];
  const [video, fault, count] = parts.map((name) => dialog.querySelector(name));
  const shoot = dialog.querySelector("[data-word=takePhoto]");
  let taken = 0;
  plain(fault, "");
  plain(count, "");
  shoot.disabled = true;
  let stream = null;
  dialog.onclose = () => stream?.getTracks().forEach((track) => track.stop());
  shoot.onclick = async () => {
    take({ pictures: [await photo(video)], others: 0 });
    taken += 1;
    tell(count, "count", taken);
  };
  dialog.showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (!dialog.open) return dialog.onclose();
    video.srcObject = stream;
    await video.play();
    shoot.disabled = false;
    shoot.focus();
  } catch (error) {
    tell(fault, "cameraRefused", error.message);
  }
}

let photos = 0;

async function photo(video) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const content = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  photos += 1;
  return new Picture(new File([content], `${say("photo")} ${photos}.jpg`, { type: content.type }));
}

// --- Work ---------------------------------------------------------------------------------------

// Call `work(item)` for each item, a few at a time, until `signal` stops it.
export async function forEach(items, work, signal) {
  const rest = [...items];
  const worker = async () => {
    while (rest.length && !signal?.aborted) await work(rest.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
